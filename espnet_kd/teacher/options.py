"""Options that name the teachers of a training, and the loading of the ensemble."""

from __future__ import annotations

import argparse
import math

from espnet_kd.models.config import read_config, reads_audio, sampling_rate_of
from espnet_kd.models.loading import load_model
from espnet_kd.teacher.ensemble import TeacherEnsemble

OPTIONS = ("teacher_config", "teacher_model_file", "teacher_weight")


def add_teacher_options(group: argparse._ArgumentGroup) -> None:
    """Add `OPTIONS`; each takes a list, one entry per teacher."""
    group.add_argument(
        "--teacher_config",
        nargs="*",
        default=[],
        help="config.yaml of each teacher, relative to the recipe folder",
    )
    group.add_argument(
        "--teacher_model_file",
        nargs="*",
        default=[],
        help="Checkpoint of each teacher, e.g. exp/asr_x/valid.loss.ave.pth",
    )
    group.add_argument(
        "--teacher_weight",
        nargs="*",
        type=float,
        default=[],
        help="Weight of each teacher in the mean posterior; equal where absent",
    )


def check_teacher_options(args: argparse.Namespace) -> None:
    """Turn all options into lists, and refuse lists of different lengths.

    Raises:
        ValueError: names the option and the remedy.
    """
    for name in OPTIONS:
        value = getattr(args, name)
        if not isinstance(value, list):  # a YAML file may have one name, or null
            setattr(args, name, [] if value is None else [value])
    configs, files = args.teacher_config, args.teacher_model_file
    if len(configs) != len(files):
        raise ValueError(
            f"teacher_model_file: {len(files)} files for {len(configs)} "
            "teacher_config; give one for each, in the same order"
        )
    if args.teacher_weight and len(args.teacher_weight) != len(configs):
        raise ValueError(
            f"teacher_weight: {len(args.teacher_weight)} weights for {len(configs)} "
            "teachers; give one for each, or none for equal weights"
        )
    if not all(_is_positive(weight) for weight in args.teacher_weight):
        raise ValueError(
            f"teacher_weight: {args.teacher_weight} must be numbers above 0; "
            "leave a teacher out instead"
        )


def _is_positive(weight: object) -> bool:
    return isinstance(weight, (int, float)) and 0 < weight < math.inf


def load_teachers(args: argparse.Namespace) -> TeacherEnsemble:
    """The teachers named by the options of a training.

    Raises:
        ValueError: a teacher does not fit the student; names the option.
        OSError: a file cannot be read.
    """
    rate = sampling_rate_of(vars(args))
    teachers = {}
    for config, file in zip(args.teacher_config, args.teacher_model_file):
        teacher_args = read_config(config)
        for name, each in (("the student", vars(args)), (config, teacher_args)):
            if not reads_audio(each):
                raise ValueError(
                    f"input_size: {name} reads features, but student and teachers must "
                    "share a waveform; train from raw audio (feats_type raw), or use "
                    "sequence-level KD (teacher_decode and kd_set)"
                )
        teacher_rate = sampling_rate_of(teacher_args)
        if teacher_rate != rate:
            raise ValueError(
                f"frontend_conf.fs: {config} was trained on {teacher_rate} Hz audio, "
                f"the student takes {rate} Hz; both must read the same waveform"
            )
        name = config if config not in teachers else f"{config} ({file})"
        teachers[name] = load_model(config, file)
    weights = args.teacher_weight or [1.0] * len(teachers)
    return TeacherEnsemble(teachers, weights)
