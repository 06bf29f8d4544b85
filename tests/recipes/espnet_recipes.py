"""ESPnet's own recipes: egs2/ of its source distribution, which the wheel leaves out.

    python -m tests.recipes.espnet_recipes      (or: make espnet-recipes)

downloads them by pip (36 MB) and unpacks them, once, into .cache/ of this repository,
whole or not at all; prints the folder. Tests of tests/recipes/ take them from there, or
checkouts that ESPNET_ROOT names.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

REPO = Path(__file__).parents[2]
PIN = REPO / "conf/espnet-recipes.txt"
RELEASE = re.search(r"^espnet==(\d+)", PIN.read_text(), re.MULTILINE)[1]
FOLDER = REPO / ".cache" / f"espnet-{RELEASE}"
PARTS = ("egs2", "tools", "utils", "LICENSE")
# A source distribution has no links: those to files become files, those to folders are
# lost. Without the latter, which ESPnet's setup.sh makes, no asr.sh runs.
LINKS = ("pyscripts", "scripts", "steps", "utils")


def fetch() -> Path:
    """The unpacked distribution, downloaded if missing.

    Raises:
        ConnectionError: pip could not download it.
    """
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.with_name(f"{FOLDER.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not FOLDER.exists():
            part = FOLDER.with_name(f"{FOLDER.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            unpack(download(part), part)
            (part / FOLDER.name).rename(FOLDER)
            shutil.rmtree(part)
    return FOLDER


def download(folder: Path) -> Path:
    """The archive, by pip from its configured registry."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    # It is read, not installed, so this ESPnet need not support the Python.
    command += ["--no-binary", ":all:", "--ignore-requires-python", "-r", str(PIN)]
    done = subprocess.run(
        [*command, "-d", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise ConnectionError(
            f"the recipes of ESPnet {RELEASE} could not be downloaded; pip's output:\n"
            f"{done.stdout[-2000:]}"
        )
    return folder / f"{FOLDER.name}.tar.gz"


def unpack(archive: Path, folder: Path) -> None:
    """Unpack `PARTS` and put back the links to TEMPLATE."""
    heads = tuple(f"{FOLDER.name}/{name}" for name in PARTS)
    with tarfile.open(archive) as tar:
        members = (each for each in tar if each.name.startswith(heads))
        tar.extractall(folder, members, filter="data")
    for recipe in (folder / FOLDER.name / "egs2").glob("*/asr1"):
        for name in LINKS:
            if not (recipe / name).exists():
                (recipe / name).symlink_to(f"../../TEMPLATE/asr1/{name}")


# Beside the recipe.
SHARED = ("egs2/TEMPLATE/asr1", "tools/extra_path.sh", "tools/sentencepiece_commands")


def copy_recipe(root: Path, name: str, top: Path) -> Path:
    """egs2/NAME/asr1 of the checkout `root` and what it needs; returns the copy."""
    recipe = f"egs2/{name}/asr1"
    for part in (*SHARED, recipe):
        if not (top / part).exists():
            _copy(root / part, top / part)
    # In a checkout some files are links to files of other recipes.
    for link in [path for path in top.rglob("*") if not path.exists()]:
        target = os.path.relpath(link.parent / os.readlink(link), top)
        is_inside = not target.startswith("..")
        if is_inside and (root / target).exists() and not (top / target).exists():
            _copy(root / target, top / target)
    return top / recipe


def _copy(source: Path, target: Path) -> None:
    """A file, or a folder with its links as they are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)


def line_with_kd_sh() -> str:
    """The command of docs/dropping_in.md that makes run_kd.sh of a run.sh."""
    page = (REPO / "docs/dropping_in.md").read_text()
    return re.search(r"^sed .* run\.sh > run_kd\.sh$", page, re.MULTILINE)[0]


if __name__ == "__main__":
    try:
        print(fetch())
    except ConnectionError as error:
        sys.exit(f"espnet_recipes: {error}")
