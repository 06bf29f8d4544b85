"""Commands import torch only for work that needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
# Each takes 0.3 to 6 seconds to import.
SLOW = {"torch", "lhotse", "espnet2", "scipy", "matplotlib", "pandas", "numba"}
# Our modules for tensors.
SLOW |= {"espnet_kd.losses", "espnet_kd.lattice"}
# Their options are ESPnet's, which only its tasks define.
ESPNETS = {"asr_train", "asr_transducer_train"}
COMMANDS = sorted(
    path.stem
    for path in (REPO / "espnet_kd" / "bin").glob("*.py")
    if path.stem not in ESPNETS | {"__init__", "command"}
)
# Runs a command as `python -m` does and then prints what it imported.
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("exit:", end.code)
parts = [name.split(".") for name in sys.modules]
print("imported:", *{".".join(part[:n]) for part in parts for n in (1, 2)})
"""


def imports_of(command: str, *options: object, cwd: Path = REPO) -> tuple[str, set]:
    """The output of a command, and the slow packages that it imported."""
    answer = subprocess.run(
        [sys.executable, "-c", RUN, f"espnet_kd.bin.{command}", *map(str, options)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    text, _, imported = answer.stdout.rpartition("imported:")
    return text + answer.stderr, set(imported.split()) & SLOW


def test_all_commands_are_tried():
    assert {"kd_set", "report", "teacher_decode"} < set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str):
    text, slow = imports_of(command, "--help")
    assert "--help" in text and not slow


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option(command: str):
    text, slow = imports_of(command, "--no_such_option")
    assert "exit: 2" in text and "usage:" in text and not slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A Kaldi folder of two utterances, without their audio."""
    (tmp_path / "wav.scp").write_text("a-1 a-1.wav\nb-1 b-1.wav\n")
    (tmp_path / "text").write_text("a-1 one two\nb-1 two three\n")
    (tmp_path / "utt2spk").write_text("a-1 a\nb-1 b\n")
    (tmp_path / "utt2num_samples").write_text("a-1 8000\nb-1 4000\n")
    (tmp_path / "utt2dur").write_text("a-1 1\nb-1 0.5\n")
    return tmp_path


def test_an_existing_kd_set(data: Path):
    words = ("--labelled_data_dir", data, "--output_dir", data / "kd")
    text, slow = imports_of("kd_set", *words)
    assert "2 targets" in text and slow == {"lhotse", "torch"}  # Lhotse's
    text, slow = imports_of("kd_set", *words)
    assert "exists already" in text and not slow


def test_an_existing_set(tmp_path: Path):
    words = ["--output_dir", tmp_path]
    for name in "train_teacher", "train_labelled", "train_unlabelled", "valid", "test":
        words += [f"--num_{name}", 1]
    assert "lhotse" in imports_of("prepare_mini", *words)[1]
    text, slow = imports_of("prepare_mini", *words)
    assert "already made" in text and not slow


def test_scores_without_a_model(data: Path):
    output = data / "result.md"
    words = ("--ref", data / "text", "--hyp", "same", data / "text")
    text, slow = imports_of("report", *words, "--output", output)
    assert "exit: 0" in text and output.exists() and not slow


def test_token_lists(data: Path):
    words = ("--text", data / "text", "--output_dir", data / "tokens")
    text, slow = imports_of("token_list", *words, "--token_type", "bpe", "--nbpe", 12)
    assert (data / "tokens" / "bpe.model").exists(), text
    assert not slow
    text, slow = imports_of("token_list", *words, "--token_type", "char")
    assert "t" in (data / "tokens" / "tokens.txt").read_text().split(), text
    assert "espnet2" in slow and "torch" not in slow


def test_presets_are_read(tmp_path: Path):
    preset = REPO / "conf" / "kd" / "one_best_path.yaml"
    text, slow = imports_of("preset", "options", "--kd_config", preset)
    assert "--labelled_targets" in text and not slow


def test_a_missing_model():
    text, slow = imports_of(
        *("plan", "--hours", 1, "--teacher_parameters", "1e6"),
        *("--student_width", 64, "--teacher_width", 128),
    )
    assert "give either --student_config or --student_parameters" in text and not slow
