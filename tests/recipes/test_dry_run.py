"""kd.sh --dry_run: what would run and what is wrong, with nothing written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def dry_run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """The recipe's own run.sh."""
    return subprocess.run(
        ["./run.sh", "--dry_run", "true", *options],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def states(table: str) -> list[str]:
    """The states of stages 1 to 14."""
    rows = re.findall(r"^( ?\d+) \S.*?  +(\S.*)$", table, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 15)), table
    return [state for _, state in rows]


@pytest.fixture(params=["mini", "fsdd", "librispeech", "swbd", "wsj"])
def recipe(request, tmp_path: Path) -> Path:
    """A recipe of ours as it is cloned, without corpus."""
    source = REPO / "egs" / request.param / "asr1"
    for name in ("cmd.sh", "conf", "kd.sh", "local", "path.sh", "run.sh", "utils"):
        (tmp_path / name).symlink_to(source / name)
    return tmp_path


def test_our_recipes_have_no_faults(recipe: Path):
    before = tree(recipe)
    answer = dry_run(recipe)
    assert answer.returncode == 0, answer.stderr
    found = states(answer.stdout)
    assert found[6].startswith("nothing to do") and found[10] == "not requested"
    assert found[:6] + found[7:10] + found[11:] == 12 * ["will run"]
    assert "No estimate: hours of audio are not yet known" in answer.stdout
    assert tree(recipe) == before


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    for path in (REPO / "egs/mini/asr1").iterdir():
        if path.name not in ("data", "dump", "exp"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_all_faults_and_what_is_missing(mini: Path):
    options = ("--stage", "9", "--asr_config", "conf/trian.yaml", "--use_k2", "true")
    answer = dry_run(mini, *options, "--inference_config", "conf/x.yaml")
    assert answer.returncode == 1
    errors = re.findall("^Error: (.*)", answer.stderr, re.M)
    for part in (
        "--use_k2 true: not supported with KD",
        "--asr_config conf/trian.yaml: not found",
        "--inference_config conf/x.yaml: not found",
        "dump/raw/train_labelled_kd_one_best_path/wav.scp: not found; run stage 8",
        "valid.loss.ave.pth: not found; run stage 5",
    ):
        assert sum(part in error for error in errors) == 1, errors
    found = states(answer.stdout)
    assert found[:8] == 6 * ["not requested"] + [found[6], "not requested"]
    train = "missing dump/raw/train_labelled/wav.scp, made by stage 2, and"
    assert found[8].startswith(train)
    assert not (mini / "exp").exists()


def test_the_same_faults_end_a_run_before_its_first_stage(mini: Path):
    options = ("--asr_config", "conf/trian.yaml", "--dry_run", "false")
    answer = dry_run(mini, *options)
    assert answer.returncode == 1
    assert answer.stderr.splitlines() == [
        "Error: --asr_config conf/trian.yaml: not found"
    ]
    assert "Stage" not in answer.stdout and not (mini / "data").exists()


def test_an_estimate_where_the_audio_is_known(mini: Path):
    for name in "train_labelled", "train_unlabelled", "train_teacher", "valid", "test":
        (mini / "data" / name).mkdir(parents=True)
        number = 200 if name == "train_teacher" else 100
        table = "".join(f"utt{n} rec{n} 1.0 37.0\n" for n in range(number))
        (mini / "data" / name / "segments").write_text(table)
    answer = dry_run(mini, "--ngpu", "2")
    assert answer.returncode == 0, answer.stderr
    assert "(on 2 x v100)" in answer.stdout
    rows = [line.split() for line in answer.stdout.splitlines()]
    titles = rows[0]
    assert titles == ["Stage", "Disk,", "GB", "Hours"]
    (row,) = (row for row in rows if row[:2] == ["9", "student"])
    disk, hours = row[-2:]
    assert disk == "<0.01" and hours == "<0.01"  # 0.05 M parameters
    (formatted,) = (row for row in rows if row[:2] == ["2", "format"])
    assert formatted[-2] == "0.35"  # 6 hours at 8 kHz, in 16 bits
