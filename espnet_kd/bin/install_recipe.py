"""Put kd.sh and conf/kd beside the run.sh of an ESPnet recipe, or remove them again.

Nothing else is changed. By default these are links, which follow the package; copies
(--copy) do not change, and conf/kd/.installed records their checksums.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

import espnet_kd
from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_folder, write_whole

PACKAGE = Path(espnet_kd.__file__).resolve().parent
SHIPPED = {"kd.sh": "shipped/asr1/kd.sh", "conf/kd": "shipped/kd"}
# Files that identify an ESPnet ASR recipe.
OF_A_RECIPE = ("run.sh", "asr.sh", "path.sh", "cmd.sh", "conf", "local")
RECORD = "conf/kd/.installed"


def install(recipe: Path, copy: bool = False) -> list[Path]:
    """Link or copy `SHIPPED` into a recipe; returns the new paths.

    Raises:
        FileNotFoundError: the folder is not an ESPnet ASR recipe.
        FileExistsError: a file is in the way that is not ours, or was changed.
    """
    lacking = [name for name in OF_A_RECIPE if not (recipe / name).exists()]
    if lacking:
        raise FileNotFoundError(
            f"{recipe}: not an ESPnet ASR recipe, {', '.join(lacking)} not found; give "
            "a folder like egs2/librispeech/asr1"
        )
    remove(recipe)
    if copy:
        _copy(recipe)
    else:
        for name, shipped in SHIPPED.items():
            (recipe / name).symlink_to(PACKAGE / shipped)
    return [recipe / name for name in SHIPPED]


def _copy(recipe: Path) -> None:
    """Copy the presets and the record of all copies first, so a kill can be undone."""
    program, presets = (PACKAGE / SHIPPED[name] for name in ("kd.sh", "conf/kd"))
    files = {"kd.sh": program}
    files |= {f"conf/kd/{path.name}": path for path in sorted(presets.iterdir())}
    lines = [f"{_digest(path)}  {name}\n" for name, path in files.items()]
    with write_folder(recipe / "conf/kd") as new:
        shutil.copytree(presets, new, dirs_exist_ok=True)
        (new / Path(RECORD).name).write_text("".join(lines), encoding="utf-8")
    write_whole(recipe / "kd.sh", lambda part: shutil.copy(program, part))


def remove(recipe: Path) -> list[Path]:
    """Remove what `install` put into a recipe; returns the removed paths.

    Raises:
        FileNotFoundError: the folder does not exist.
        FileExistsError: a file is not ours, or was changed since; nothing is removed.
    """
    if not recipe.is_dir():
        raise FileNotFoundError(f"{recipe}: no such folder")
    present = [name for name in SHIPPED if os.path.lexists(recipe / name)]
    recorded = _recorded(recipe)
    for name in present:
        path = recipe / name
        if not path.is_symlink():
            _require_unchanged(recipe, path, recorded)
        elif not _is_our_link(path, SHIPPED[name]):
            raise FileExistsError(f"{path}: is not our link; move it away")
    for name in present:
        path = recipe / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [recipe / name for name in present]


def _is_our_link(path: Path, shipped: str) -> bool:
    """True also for a link made by hand, or to a package that has moved since."""
    is_made_here = os.readlink(path).endswith(f"{PACKAGE.name}/{shipped}")
    return is_made_here or path.resolve() == (PACKAGE / shipped).resolve()


def _require_unchanged(recipe: Path, path: Path, recorded: dict[str, str]) -> None:
    files = [path]
    if path.is_dir():
        files = sorted(path.rglob("*")) or files
    for file in files:
        name = file.relative_to(recipe).as_posix()
        if name == RECORD:
            continue
        if name not in recorded:
            raise FileExistsError(f"{file}: was not installed by us; move it away")
        if _digest(file) != recorded[name]:
            raise FileExistsError(
                f"{file}: was changed since it was installed; move it away (your own "
                "presets may be anywhere else, for example in conf/)"
            )


def _recorded(recipe: Path) -> dict[str, str]:
    """File in the recipe -> its checksum when copied."""
    path = recipe / RECORD
    if (recipe / "conf/kd").is_symlink() or not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("install_recipe", __doc__)
    parser.add_argument("recipe", type=Path, help="a folder like egs2/librispeech/asr1")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--copy", action="store_true", help="copy the files, if links cannot be used"
    )
    choice.add_argument("--undo", action="store_true", help="remove them again")
    return parser


def run(args: argparse.Namespace) -> None:
    """Install or remove, and list the paths."""
    if args.undo:
        removed = remove(args.recipe)
        print("\n".join(f"removed {path}" for path in removed) or "nothing to undo")
    else:
        for path in install(args.recipe, args.copy):
            print(f"{path} -> {path.readlink()}" if path.is_symlink() else path)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
