"""The options that KD adds to an ESPnet task, and the student built from them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet_kd.compress.init_from_teacher import init_from_teacher
from espnet_kd.compress.pruning import make_pruner
from espnet_kd.config.kd_conf import InitConf, KDConf, parse_kd_conf
from espnet_kd.models import warprnnt
from espnet_kd.models.config import read_config, reads_audio, sampling_rate_of
from espnet_kd.models.lengths import use_true_lengths
from espnet_kd.models.loading import (
    load_init_param,
    load_model,
    load_stock_model,
    whole_init_params,
)
from espnet_kd.models.versions import (
    clear_shared_defaults,
    warn_of_untested_version,
)
from espnet_kd.student.model import Student, check_weightable, make_student
from espnet_kd.tasks.trainer import KDTrainer, follow


class KDTaskMixin:
    """Mixed in before an ESPnet task class."""

    trainer = KDTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_task_arguments(parser)
        group = parser.add_argument_group(description="Knowledge distillation")
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
        group.add_argument(
            "--kd_conf",
            action=NestedDictAction,
            default=dict(),
            help="KD losses, see espnet_kd/config/kd_conf.py; empty: stock training",
        )

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        names = super().optional_data_names(train, inference)
        return names if inference else (*names, "kd_weight")

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """The stock one, which takes all that `--init_param` names."""
        with whole_init_params(_refusing()(load_init_param)):
            super().main_worker(args)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> torch.nn.Module:
        """The stock model, or a student around it when `kd_conf` lists losses or hidden
        layers or prunes, or the training data carry weights.

        Raises:
            ValueError: an option does not fit; the message names it and the remedy.
        """
        with _refusing():
            conf = parse_kd_conf(args.kd_conf or {})
            _check_options(args, conf)
        warprnnt.install()
        warn_of_untested_version()
        clear_shared_defaults()
        model = super().build_model(args)
        if args.collect_stats:
            return model
        if conf.init_from_teacher is not None:
            with _refusing():
                _init_from_teacher(model, conf.init_from_teacher, args)
        is_kd = _is_kd(args, conf)
        if is_kd if conf.true_lengths is None else conf.true_lengths:
            use_true_lengths(model)
        if is_kd or conf.lean_joint or conf.pruning:
            if not is_kd and conf.lean_joint is None:
                conf = dataclasses.replace(conf, lean_joint=False)
            with _refusing():
                teachers = _load_teachers(args) if conf.needs_teacher else {}
                weights = args.teacher_weight or [1.0] * len(teachers)
                make_student(
                    model, conf, teachers, weights, sampling_rate_of(vars(args))
                )
                if _has_weights(args):
                    check_weightable(model)
            logging.info(f"Teachers: {list(teachers)}; {conf}")
        return model

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """The stock ones; a student's tells it how many updates it got, and prunes."""
        optimizers = super().build_optimizers(args, model)
        if isinstance(model, Student):
            pruning = parse_kd_conf(args.kd_conf or {}).pruning
            if pruning is not None:
                with _refusing():
                    model.pruner = make_pruner(model, pruning)
            follow(model, optimizers[0])
        return optimizers


class ConfigurationError(ValueError):
    """An option that does not fit; the message names it and the remedy."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _has_weights(args: argparse.Namespace) -> bool:
    files = getattr(args, "train_data_path_and_name_and_type", None) or []
    return any(name == "kd_weight" for _, name, _ in files)


def _is_kd(args: argparse.Namespace, conf: KDConf) -> bool:
    return conf.needs_teacher or _has_weights(args)


def _check_options(args: argparse.Namespace, conf: KDConf) -> None:
    for name in ("teacher_config", "teacher_model_file", "teacher_weight"):
        value = getattr(args, name)
        if not isinstance(value, list):  # a YAML file may hold one name, or null
            setattr(args, name, [] if value is None else [value])
    if not (_is_kd(args, conf) or conf.pruning or conf.init_from_teacher):
        return
    _check_parallel(args, conf)
    asking = [n for n in ("losses", "hidden", "init_from_teacher") if getattr(conf, n)]
    if asking and not args.teacher_config:
        raise ValueError(
            f"teacher_config: kd_conf has {asking[0]} but there is no teacher; give "
            f"--teacher_config and --teacher_model_file, or empty kd_conf.{asking[0]}"
        )
    _check_teachers(args)


def _check_parallel(args: argparse.Namespace, conf: KDConf) -> None:
    """Refuse ways of training on several GPUs that KD or pruning cannot go."""
    for name in ("sharded_ddp", "use_deepspeed"):
        if conf.pruning is not None and getattr(args, name, False):
            raise ValueError(
                f"{name}: pruning needs every weight and its moments on each rank; "
                f"leave {name} out, or kd_conf.pruning"
            )
    if getattr(args, "ngpu", 0) > 1 and not torch.distributed.is_initialized():
        raise ValueError(
            f"ngpu: {args.ngpu} without multiprocessing_distributed is DataParallel, "
            "which can neither hold a teacher nor prune; add "
            "--multiprocessing_distributed true"
        )
    compares_hypotheses = any("sequence" in loss.nodes for loss in conf.losses)
    if compares_hypotheses and getattr(args, "multiple_iterator", False):
        raise ValueError(
            "kd_conf.losses: nodes: sequence compares the hypotheses of an utterance, "
            "which a split set tears apart; leave --num_splits_asr at 1"
        )
    if compares_hypotheses and torch.distributed.is_initialized():
        raise ValueError(
            "kd_conf.losses: nodes: sequence compares hypotheses of a batch, which "
            "ESPnet deals out to the ranks one by one; train on one GPU, or weight the "
            "hypotheses in the data instead (kd_set --weights posterior)"
        )


def _check_teachers(args: argparse.Namespace) -> None:
    """Refuse lists of teachers, their files and weights that differ in length."""
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


def _init_from_teacher(
    model: torch.nn.Module, conf: InitConf, args: argparse.Namespace
) -> None:
    index = conf.teacher_index
    if index >= len(args.teacher_config):
        raise ValueError(
            f"kd_conf.init_from_teacher.teacher_index: {index}, but teacher_config has "
            f"{len(args.teacher_config)} teachers, counted from 0"
        )
    config, file = args.teacher_config[index], args.teacher_model_file[index]
    init_from_teacher(model, load_stock_model(config, file), conf, config)


def _is_positive(weight: object) -> bool:
    return isinstance(weight, (int, float)) and 0 < weight < math.inf


def _load_teachers(args: argparse.Namespace) -> dict[str, torch.nn.Module]:
    rate = sampling_rate_of(vars(args))
    teachers = {}
    for config, file in zip(args.teacher_config, args.teacher_model_file):
        teacher_args = read_config(config)
        for name, each in (("the student", vars(args)), (config, teacher_args)):
            if not reads_audio(each):
                raise ValueError(
                    f"input_size: {name} reads features, but student and teachers "
                    "share a waveform; train from raw audio (feats_type raw), or use "
                    "sequence-level KD (teacher_decode and kd_set)"
                )
        teacher_rate = sampling_rate_of(teacher_args)
        if teacher_rate != rate:
            raise ValueError(
                f"frontend_conf.fs: {config} was trained on {teacher_rate} Hz audio, "
                f"the student takes {rate} Hz; both read the same waveform"
            )
        name = config if config not in teachers else f"{config} ({file})"
        teachers[name] = load_model(config, file)
    return teachers
