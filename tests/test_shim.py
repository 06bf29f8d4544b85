"""The shim in place of python: `-m`, `-c`, scripts, training, spawned processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet_kd import shim
from tests.tasks.recipe import Recipe, teachers

ROOT = Path(__file__).parents[1]
SHOW = "import os, sys; print(sys.argv, os.path.abspath(sys.path[0]), __name__)\n"


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """`python arguments...` in a separate process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )


def through_shim(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return python("-m", "espnet_kd.shim", *arguments, cwd=cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module, a script beside a module that it imports, and a failing script."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "shown.py").write_text(SHOW)
    (tmp_path / "tools" / "neighbour.py").write_text("value = 7\n")
    script = "from neighbour import value\n" + SHOW + "print(value)\n"
    (tmp_path / "tools" / "script.py").write_text(script)
    (tmp_path / "tools" / "fails.py").write_text("raise SystemExit(3)\n")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "shown", "--a", "b c"),
        ("-c", SHOW, "--a", "b c"),
        ("tools/script.py", "--a", "b c"),
        ("tools/fails.py",),
    ],
    ids=["-m", "-c", "script", "exit code"],
)
def test_as_python_does(folder: Path, arguments):
    expected, got = (run(*arguments, cwd=folder) for run in (python, through_shim))
    assert got.stdout == expected.stdout
    assert got.returncode == expected.returncode
    assert bool(got.stdout) == (arguments[0] != "tools/fails.py")


def test_unknown_flags_are_refused():
    with pytest.raises(SystemExit, match="cannot pass -u on to python; use -m module"):
        shim.main(["-u", "script.py"])
    with pytest.raises(SystemExit, match="cannot pass -m on"):
        shim.main(["-m"])
    with pytest.raises(SystemExit, match="Replaces `python`"):
        shim.main([])


SPAWNING = """
import multiprocessing

def work():
    print("child", flush=True)

print(__name__, flush=True)
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()
    print("exit code", child.exitcode)
"""


def test_a_spawned_process_does_not_start_the_module_again(folder: Path):
    """As ESPnet spawns one process per GPU, which imports the main module by name."""
    (folder / "spawning.py").write_text(SPAWNING)
    expected, got = (
        run("-m", "spawning", cwd=folder) for run in (python, through_shim)
    )
    assert got.stdout.split("\n") == expected.stdout.split("\n")
    assert expected.stdout.endswith("__mp_main__\nchild\nexit code 0\n")


@pytest.fixture
def as_main(monkeypatch: pytest.MonkeyPatch):
    """The shim in this process, where warprnnt_pytorch was not imported yet."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "warprnnt_pytorch", raising=False)
    return lambda *arguments: shim.main(list(map(str, arguments)))


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_training_runs_with_kd(as_main, tmp_path: Path, kind: str):
    recipe = Recipe(tmp_path / "recipe")
    conf = dict(losses=[dict(nodes="frames")])
    model = teachers(recipe.teacher(kind))
    options = recipe.options(kind, "student", kd_conf=conf, **model)
    task = "asr" if kind == "hybrid" else kind
    as_main("-m", f"espnet2.bin.{task}_train", *options)
    folder = tmp_path / "recipe/student"
    assert yaml.safe_load((folder / "config.yaml").read_text())["kd_conf"] == conf
    states = torch.load(folder / "checkpoint.pth", **recipe.all_types())
    assert "loss_kd_frames" in states["reporter"]["stats"][1]["train"]


def test_inference_gets_the_stand_in(as_main, tmp_path: Path, monkeypatch):
    """A stock transducer of the asr task cannot even be built without it."""
    recipe = Recipe(tmp_path / "recipe")
    model = recipe.teacher("transducer")
    monkeypatch.delitem(sys.modules, "warprnnt_pytorch")
    options = ["--asr_train_config", model.config, "--asr_model_file", model.checkpoint]
    options += ["--output_dir", tmp_path / "decoded", "--beam_size", "1"]
    data = f"{recipe.data}/wav.scp,speech,sound"
    options += ["--data_path_and_name_and_type", data]
    as_main("-m", "espnet2.bin.asr_inference", *options)
    text = (tmp_path / "decoded/1best_recog/text").read_text()
    assert len(text.splitlines()) == 8
