"""install_recipe: files that it installs, and files that it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_kd.bin.install_recipe import install, main, remove

REPO = Path(__file__).parents[2]
PRESETS = sorted(path.name for path in (REPO / "conf" / "kd").iterdir())


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A folder with the files of every egs2/<corpus>/asr1."""
    for name in ("conf", "local"):
        (tmp_path / "asr1" / name).mkdir(parents=True)
    for name in ("run.sh", "asr.sh", "path.sh", "cmd.sh", "conf/train_asr.yaml"):
        (tmp_path / "asr1" / name).write_text(f"# {name}\n")
    return tmp_path / "asr1"


def contents(folder: Path) -> dict[str, tuple]:
    """Every path: where a link points to, or text and time."""
    return {
        str(path.relative_to(folder)): (
            (os.readlink(path),)
            if path.is_symlink()
            else (path.read_bytes(), path.stat().st_mtime_ns)
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("copy", [False, True])
def test_install_and_undo(recipe: Path, copy: bool):
    before = contents(recipe)
    install(recipe, copy)
    for _ in range(2):  # the second time over our own files
        after = contents(recipe)
        assert {name: after[name] for name in before} == before
        assert (recipe / "kd.sh").is_symlink() != copy
        assert os.access(recipe / "kd.sh", os.X_OK)
        text = (REPO / "egs" / "TEMPLATE" / "asr1" / "kd.sh").read_bytes()
        assert (recipe / "kd.sh").read_bytes() == text
        presets = [path.name for path in (recipe / "conf" / "kd").glob("*.yaml")]
        assert sorted(presets) == PRESETS
        install(recipe, copy)
    assert remove(recipe) == [recipe / "kd.sh", recipe / "conf" / "kd"]
    assert contents(recipe) == before
    assert not (recipe / "conf" / "kd").exists()
    assert remove(recipe) == []


@pytest.mark.parametrize("lacking", ["asr.sh", "run.sh", "local"])
def test_no_recipe(recipe: Path, lacking: str):
    path = recipe / lacking
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"not an ESPnet ASR recipe, {lacking} not"
    ):
        install(recipe)
    assert not os.path.lexists(recipe / "kd.sh")


def test_a_dangling_link_is_not_part_of_a_recipe(recipe: Path):
    (recipe / "asr.sh").unlink()
    (recipe / "asr.sh").symlink_to("../../TEMPLATE/asr1/asr.sh")
    with pytest.raises(FileNotFoundError, match="asr.sh not found"):
        install(recipe)


def test_files_of_others_stay(recipe: Path):
    (recipe / "kd.sh").write_text("echo mine\n")
    for act in install, remove:
        with pytest.raises(FileExistsError, match="kd.sh: was not installed by us"):
            act(recipe)
    (recipe / "kd.sh").unlink()
    (recipe / "kd.sh").symlink_to("run.sh")
    for act in install, remove:
        with pytest.raises(FileExistsError, match="kd.sh: is not our link"):
            act(recipe)
    (recipe / "kd.sh").unlink()
    (recipe / "conf" / "kd").mkdir()
    (recipe / "conf" / "kd" / "own.yaml").write_text("kd_conf: {}\n")
    for act in install, remove:
        with pytest.raises(FileExistsError, match="own.yaml: was not installed by us"):
            act(recipe)
    assert not os.path.lexists(recipe / "kd.sh")


def test_changed_copies_stay(recipe: Path):
    install(recipe, copy=True)
    preset = recipe / "conf" / "kd" / "sequence.yaml"
    preset.write_text(preset.read_text() + "# mine\n")
    for act in install, remove:
        with pytest.raises(FileExistsError, match="sequence.yaml: was changed since"):
            act(recipe)
    assert preset.read_text().endswith("# mine\n")
    assert (recipe / "kd.sh").exists()


def test_links_made_by_hand_or_to_a_removed_package(recipe: Path):
    (recipe / "kd.sh").symlink_to(REPO / "egs" / "TEMPLATE" / "asr1" / "kd.sh")
    (recipe / "conf" / "kd").symlink_to("/gone/espnet_kd/shipped/kd")
    install(recipe)
    assert (recipe / "conf" / "kd" / "sequence.yaml").exists()


def test_command(recipe: Path, capsys: pytest.CaptureFixture):
    main([str(recipe)])
    output = capsys.readouterr().out
    assert f"{recipe}/kd.sh -> " in output and f"{recipe}/conf/kd -> " in output
    main([str(recipe), "--undo"])
    assert f"removed {recipe}/kd.sh" in capsys.readouterr().out
    main([str(recipe), "--undo"])
    assert capsys.readouterr().out == "nothing to undo\n"
    with pytest.raises(SystemExit, match="install_recipe: .*gone: no such"):
        main([str(recipe / "gone"), "--undo"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as pip installs it from a wheel: no checkout around it."""
    pytest.importorskip("wheel", reason="wheels are built with the package wheel")
    work = tmp_path_factory.mktemp("wheel")
    (work / "src").mkdir()
    for name in ("setup.py", "pyproject.toml", "espnet_kd", "egs", "conf"):
        # Links: a build leaves nothing in the checkout.
        (work / "src" / name).symlink_to(REPO / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    alone = ("--no-deps", "--no-index")
    build = (
        "wheel",
        "--no-build-isolation",
        *alone,
        "-w",
        str(work),
        str(work / "src"),
    )
    subprocess.run([*pip, *build], check=True)
    (wheel,) = work.glob("*.whl")
    target = ("install", *alone, "--target", str(work / "site"), str(wheel))
    subprocess.run([*pip, *target], check=True)
    return work / "site"


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_from_a_wheel(recipe: Path, installed: Path, copy: list[str]):
    """kd.sh is found, runs, and finds our other files, as a link and as a copy."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    module = (sys.executable, "-m", "espnet_kd.bin.install_recipe")
    # Not in the checkout, whose package would take precedence over the installed one.
    subprocess.run([*module, ".", *copy], check=True, env=environment, cwd=recipe)
    assert copy or installed in (recipe / "kd.sh").resolve().parents
    for name in ("path.sh", "cmd.sh"):  # ours must be used
        (recipe / name).unlink()
    options = (
        "--train_set a --valid_set b --test_sets c --asr_config d "
        "--skip_data_prep true --skip_train true --skip_eval true"
    )
    answer = subprocess.run(
        ["./kd.sh", "--python", sys.executable, *options.split()],
        cwd=recipe,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "is not on PATH" not in answer.stdout  # run_jobs.py of the wheel
    presets = [path.name for path in (recipe / "conf" / "kd").glob("*.yaml")]
    assert sorted(presets) == PRESETS
