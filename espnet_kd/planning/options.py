"""Valid values of kd.sh's options, independent of any files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from espnet_kd.planning.chain import STAGES, Chain

NEEDED = ("train_set", "valid_set", "test_sets", "asr_config")
LAST = max(STAGES)
NUMBERS = f"must be 1 to {LAST} (see --help)"
WHOLE = r"[1-9]\d*"
ABOVE_ZERO = "must be a whole number above 0 (--ngpu 0: train on the CPU)"
TASK = "must be asr or asr_transducer"
# Options, the pattern that values must match completely, and the message otherwise.
RULES = (
    ("ngpu", f"0|{WHOLE}", ABOVE_ZERO),
    ("num_nodes nj inference_nj num_splits_asr batch_size", WHOLE, ABOVE_ZERO),
    ("teacher_nbest", WHOLE, ABOVE_ZERO),
    ("asr_speech_fold_length asr_text_fold_length", WHOLE, ABOVE_ZERO),
    (
        "dry_run gpu_inference ignore_init_mismatch",
        "true|false",
        "must be true or false",
    ),
    ("eval_valid_set use_lm use_ngram", "true|false", "must be true or false"),
    ("skip_data_prep skip_train skip_eval", "true|false", "must be true or false"),
    ("asr_task", "asr|asr_transducer", TASK),
    ("teacher_task", "|asr|asr_transducer", TASK),
    (
        "token_type",
        "bpe|char|word",
        "must be bpe, char or word (tokens of Whisper and Hugging Face are not "
        "supported)",
    ),
    (
        "feats_type",
        "raw|raw_copy",
        "must be raw or raw_copy, as KD reads waveforms",
    ),
    ("num_ref", "1", "must be 1, as KD supports one reference"),
)
# Commands that start jobs on this machine only.
LOCAL = re.compile(r"(.*/)?(run_jobs\.py|run\.pl)\b")


def wrong_options(chain: Chain) -> Iterator[str]:
    """Faults of `Chain.option`; other options are not checked."""
    given = dict(each.split(" ", 1) for each in chain.option)
    for name in NEEDED:
        if given.get(name) == "":
            yield f"--{name} is needed (see --help)"
    yield from _stages(given)
    for names, pattern, expected in RULES:
        for name in names.split():
            if name in given and not re.fullmatch(pattern, given[name]):
                yield f"--{name} {given[name]}: {expected}"
    yield from _machines(given)
    yield from _sets(given)


def _stages(given: dict[str, str]) -> Iterator[str]:
    first, last = given.get("stage", "1"), given.get("stop_stage", str(LAST))
    if not (re.fullmatch(r"\d+", first) and re.fullmatch(r"\d+", last)):
        yield (
            f"--stage {first}, --stop_stage {last}: must be numbers of stages, 1 to "
            f"{LAST} (see --help)"
        )
    elif int(first) > LAST:
        yield f"--stage {first}: not a stage; {NUMBERS}"
    elif int(last) < max(1, int(first)):
        yield (
            f"--stop_stage {last}: before --stage {first}, so no stage would run; "
            f"{NUMBERS}"
        )
    for number in given.get("skip_stages", "").split():
        if not number.isdigit() or int(number) not in STAGES:
            yield f"--skip_stages: {number} is not a stage; {NUMBERS}"


def _machines(given: dict[str, str]) -> Iterator[str]:
    number, command = given.get("num_nodes", "1"), given.get("cuda_cmd", "")
    if number != "1" and LOCAL.match(command):
        yield (
            f"--num_nodes {number}: {command.split()[0]} starts jobs on this machine "
            "alone; set cuda_cmd in cmd.sh to slurm.pl, or leave it at 1"
        )


def _sets(given: dict[str, str]) -> Iterator[str]:
    """Requirements of asr.sh, which would fail in stage 12."""
    train, valid = given.get("train_set", ""), given.get("valid_set", "")
    tests = given.get("test_sets", "")
    if train and valid == train:
        yield (
            f"--valid_set {valid}: is the --train_set too; they must be different sets"
        )
    if train in tests.split():
        yield (
            f"--test_sets {tests}: {train} is the --train_set; they must be different "
            "sets"
        )
