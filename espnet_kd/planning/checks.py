"""Faults of a run of kd.sh, found before its first stage.

Configurations and file names are read, but models are not built and torch is not
imported: faults that only a built model shows (for example names of hidden layers) are
reported by its training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from espnet_kd.config.files import read_yaml
from espnet_kd.config.presets import read_preset
from espnet_kd.models.checkpoints import damage_of
from espnet_kd.models.config import nodes_of_config
from espnet_kd.planning import fit
from espnet_kd.planning.chain import STAGES, Chain, Input, inputs, is_foreign
from espnet_kd.planning.configurations import (
    Described,
    kd_student,
    named,
    or_none,
    student_of,
    teachers_of,
)
from espnet_kd.planning.options import wrong_options

# ESPnet's default best_model_criterion.
CRITERIA = (("valid", "loss"), ("valid", "acc"), ("train", "loss"), ("train", "acc"))
KEPT = 10  # and its keep_nbest_models
AVERAGE = re.compile(r"(train|valid)\.(\w+)\.(?:ave(?:_(\d+)best)?|best)\.pth")


def faults(chain: Chain) -> list[str]:
    """All faults, each once and with its remedy."""
    found = [*chain.fault]
    for look in LOOKS:
        found += look(chain)
    return list(dict.fromkeys(found))


def lacking_options(c: Chain) -> Iterator[str]:
    """Missing options without which a stage cannot run."""
    asking = [number for number in (6, 8, 10, 11) if c.asks_for(number)]
    if asking and not c.teachers:
        yield (
            "--teacher_exp (a trained teacher) or --teacher_asr_config (trained in "
            f"stage 5) is needed for stage {asking[0]} ({STAGES[asking[0]]})"
        )
    is_taken = bool(c.teachers) and is_foreign(c.teachers[0], "config.yaml")
    if c.asks_for(5) and not c.teacher_asr_config and not is_taken:
        yield (
            "--teacher_asr_config is needed for stage 5 (teacher training); for a "
            "trained teacher give --teacher_exp and --skip_stages 5"
        )
    for stage in (8, 10):
        if c.asks_for(stage) and not c.kd_config:
            yield (
                f"--kd_config is needed for stage {stage} ({STAGES[stage]}), for "
                "example conf/kd/one_best_path.yaml"
            )


def lacking_inputs(c: Chain) -> Iterator[str]:
    """Missing files that are not made by any stage of this run."""
    for stage in c.stages:
        for file in inputs(c, stage):
            if not c.is_made(file):
                yield lacks(file)
    script = Path("local/data.sh")
    if c.asks_for(1) and script.exists() and not os.access(script, os.X_OK):
        yield f"{script}: not executable; chmod +x {script}"


def lacks(file: Input) -> str:
    """The message for a missing file, with the stage that makes it."""
    if not file.made_by:
        return f"{file.path}: not found"
    stages = " or ".join(map(str, file.made_by))
    # Data and statistics are also made by asr.sh; hypotheses, KD sets and models not.
    or_theirs = ", or its equivalent in asr.sh," if max(file.made_by) <= 4 else ""
    return f"{file.path}: not found; run stage {stages} of kd.sh{or_theirs} first"


def lacking_models(c: Chain) -> Iterator[str]:
    """Trained systems without the requested checkpoint, or none to decode."""
    if not c.asks_for(12, 13, 14):
        return
    systems = c.systems()
    is_any = any(
        c.asks_for(stage) or Path(folder, model).exists() or _is_done(folder)
        for folder, model, stage in systems
    )
    if not is_any:
        yield "nothing is trained: run stages 5, 9, 10 and 11 first"
    for folder, model, _ in systems:
        if _is_done(folder) and not Path(folder, model).exists():
            yield (
                f"{folder} is trained and has no {model}: give --inference_asr_model "
                "(--teacher_model, --sparse_model)"
            )


def _is_done(folder: str) -> bool:
    return Path(folder, ".done").exists()


def configurations(c: Chain) -> Iterator[str]:
    """Configurations that a stage needs and that cannot be read."""
    readers = {"kd_config": read_preset, "sparse_config": read_preset}
    for option, stages in {
        "asr_config": (4, 9, 10),
        "teacher_asr_config": (4, 5),
        "kd_config": (6, 8, 10),
        "sparse_config": (11,),
        "inference_config": (12,),
        "teacher_inference_config": (6, 12),
    }.items():
        path = getattr(c, option)
        if path and c.asks_for(*stages):
            with named(option) as problems:
                readers.get(option, read_yaml)(path)
            yield from problems


def checkpoints(c: Chain) -> Iterator[str]:
    """Requested checkpoints that training will not write."""
    student = student_of(c)
    students = [(9, c.asr_exp, student, c.asr_args)]
    with_kd = student and or_none(lambda: kd_student(c))
    students.append((10, c.kd_exp, with_kd, f"{c.asr_args} {c.kd_args}"))
    for stage, exp, student, args in students:
        if student and c.asks_for(12) and c.asks_for(stage) and not _is_trained(exp):
            yield from _unwritten(
                student, args, "inference_asr_model", c.inference_asr_model
            )
    for teacher in teachers_of(c):
        if not teacher.is_trained and not _is_trained(c.teachers[0]):
            if c.asks_for(6, 10, 11, 12):
                yield from _unwritten(
                    teacher, c.teacher_asr_args, "teacher_model", c.teacher_model
                )


def begun_by_others(c: Chain) -> Iterator[str]:
    """Trainings of asr.sh that have not ended; they are used unchanged."""
    for exp in _trainings(c).values():
        if is_foreign(exp, "config.yaml") and not any(Path(exp).glob("*.ave*.pth")):
            yield (
                f"{exp} holds a training that kd.sh did not begin and that has not "
                "ended: end it, or delete the folder"
            )


def _trainings(c: Chain) -> dict[int, str]:
    """Folders of the requested training stages."""
    folders = {9: c.asr_exp, 10: c.kd_exp, 11: c.sparse_exp}
    if c.teachers:
        folders[5] = c.teachers[0]
    return {stage: exp for stage, exp in folders.items() if c.asks_for(stage)}


def torn(c: Chain) -> Iterator[str]:
    """Damaged checkpoints, of trainings to resume and of teachers."""
    for stage, exp in _trainings(c).items():
        checkpoint = Path(exp, "checkpoint.pth")
        if checkpoint.is_file() and not _is_trained(exp):
            damage = damage_of(checkpoint)
            if damage is not None:
                yield (
                    f"{checkpoint}: the file is {damage}, so training cannot resume. "
                    "Restore a copy, or delete it to begin training again"
                    + _weights_of_an_epoch(exp, stage)
                )
    if c.asks_for(6, 10, 11, 12):
        for teacher in c.teachers:
            model = Path(teacher, c.teacher_model)
            damage = damage_of(model) if model.is_file() else None
            if damage is not None:
                yield f"{model}: the file is {damage}; copy it again, or train again"


def _weights_of_an_epoch(exp: str, stage: int) -> str:
    """A remedy: the last saved epoch, to initialise the student with."""
    epochs = sorted(Path(exp).glob("*epoch.pth"), key=lambda path: path.stat().st_mtime)
    if stage not in (9, 10) or not epochs:
        return ""
    return f" (with --pretrained_model {epochs[-1]} from the weights of that epoch)"


def _is_trained(folder: str) -> bool:
    return _is_done(folder) or is_foreign(folder, "config.yaml")


def _unwritten(model: Described, args: str, option: str, name: str) -> Iterator[str]:
    match = AVERAGE.fullmatch(name)
    if match is None:
        return
    kept = model.config.get("keep_nbest_models", KEPT)
    kept = kept if isinstance(kept, list) else [kept]
    # With few epochs ave_1best is written whatever is kept.
    if match[3] and int(match[3]) not in (1, *kept) and "keep_nbest" not in args:
        yield (
            f"--{option} {name}: training with {model.path} does not write it, "
            f"keep_nbest_models is {kept}"
        )
    if "best_model_criterion" in args:
        return
    given = model.config.get("best_model_criterion") or CRITERIA
    has_accuracy = "tokens" in nodes_of_config(model.config, model.task)
    known = [
        f"{phase}.{value}.ave.pth"
        for phase, value, *_ in given
        if value != "acc" or has_accuracy
    ]
    if f"{match[1]}.{match[2]}.ave.pth" not in known:
        yield (
            f"--{option} {name}: training with {model.path} does not write it (acc "
            "needs an attention decoder, others must be in best_model_criterion); give "
            f"{' or '.join(known) or 'another'}"
        )


LOOKS = (
    wrong_options,
    lacking_options,
    configurations,
    lacking_inputs,
    lacking_models,
    checkpoints,
    begun_by_others,
    torn,
    fit.tasks,
    fit.token_lists,
    fit.distillation,
    fit.sparse,
    fit.sampling_rate,
    fit.audio,
)
