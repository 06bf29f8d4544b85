"""Values of kd.sh's options with which no stage can work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from espnet_kd.planning.chain import Chain
from espnet_kd.planning.options import wrong_options

TEMPLATE = Path(__file__).parents[2] / "egs" / "TEMPLATE" / "asr1"
GOOD = {
    "train_set": "train",
    "valid_set": "dev",
    "test_sets": "test dev",
    "asr_config": "conf/train.yaml",
    "stage": "6",
    "stop_stage": "10000",
    "skip_stages": "9 14",
    "dry_run": "false",
    "ngpu": "0",
    "num_nodes": "1",
    "asr_speech_fold_length": "800",
    "use_lm": "true",
    "skip_train": "false",
    "asr_task": "asr_transducer",
    "teacher_task": "",
    "token_type": "bpe",
    "feats_type": "raw_copy",
    "num_ref": "1",
    "cuda_cmd": "run.pl --mem 4G",
}


def faults(**changes: str) -> list[str]:
    given = {**GOOD, **changes}
    chain = Chain(option=[f"{name} {value}" for name, value in given.items()])
    return list(wrong_options(chain))


def test_valid_options():
    assert faults() == []
    assert faults(num_nodes="2", cuda_cmd="slurm.pl") == []
    assert list(wrong_options(Chain())) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"asr_config": ""}, "--asr_config is needed (see --help)"),
        ({"ngpu": "-1"}, "--ngpu -1: must be a whole number above 0 (--ngpu 0: "),
        ({"ngpu": ""}, "--ngpu : must be a whole number"),
        ({"num_nodes": "0"}, "--num_nodes 0: must be a whole number above 0"),
        ({"asr_speech_fold_length": "x"}, "--asr_speech_fold_length x: must be a"),
        ({"use_lm": "yes"}, "--use_lm yes: must be true or false"),
        ({"skip_train": "1"}, "--skip_train 1: must be true or false"),
        ({"asr_task": ""}, "--asr_task : must be asr or asr_transducer"),
        ({"token_type": "hugging_face"}, "--token_type hugging_face: must be bpe,"),
        ({"feats_type": "raw_"}, "--feats_type raw_: must be raw or raw_copy"),
        ({"num_ref": "2"}, "--num_ref 2: must be 1, as KD supports"),
        ({"stage": "-1"}, "--stage -1, --stop_stage 10000: must be numbers"),
        ({"stage": "15"}, "--stage 15: not a stage; must be 1 to 14"),
        ({"stop_stage": "5"}, "--stop_stage 5: before --stage 6, so no stage"),
        ({"skip_stages": "15"}, "--skip_stages: 15 is not a stage; must be 1 to 14"),
        ({"num_nodes": "2"}, "--num_nodes 2: run.pl starts jobs on this machine"),
        ({"valid_set": "train"}, "--valid_set train: is the --train_set too"),
        ({"test_sets": "a train"}, "--test_sets a train: train is the --train_set"),
    ],
)
def test_invalid_values_are_named(changes: dict[str, str], message: str):
    assert len([x for x in faults(**changes) if x.startswith(message)]) == 1


def test_kd_sh_passes_the_checked_options():
    """Each option of a rule, so that none is silently skipped."""
    from espnet_kd.planning.options import NEEDED, RULES

    script = (TEMPLATE / "utils" / "kd_start.sh").read_text()
    handed_on = re.search(r"^for option in (train_set.*?); do$", script, re.M | re.S)
    checked = {*NEEDED, *" ".join(names for names, *_ in RULES).split()}
    checked |= {"stage", "stop_stage", "skip_stages", "cuda_cmd", "num_nodes"}
    assert set(handed_on[1].replace("\\", " ").split()) == checked
