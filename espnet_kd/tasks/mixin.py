"""The options that KD adds to an ESPnet task, and the student built from them."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from espnet2.utils.nested_dict_action import NestedDictAction

from espnet_kd.compress.init_from_teacher import init_from_teacher
from espnet_kd.compress.pruning import make_pruner
from espnet_kd.config.init import InitConf
from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.config.reference import help_text
from espnet_kd.distill import signals
from espnet_kd.models import warprnnt
from espnet_kd.models.config import sampling_rate_of
from espnet_kd.models.espnet_versions import (
    clear_shared_defaults,
    warn_of_untested_version,
)
from espnet_kd.models.lengths import use_true_lengths
from espnet_kd.models.loading import (
    load_init_param,
    load_stock_model,
    whole_init_params,
)
from espnet_kd.student.make import check_weightable, make_student
from espnet_kd.student.model import Student
from espnet_kd.tasks.trainer import KDTrainer, follow


class KDTaskMixin:
    """Mixed in before an ESPnet task class."""

    trainer = KDTrainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_task_arguments(parser)
        group = parser.add_argument_group(description="Knowledge distillation")
        signals.add_source_options(group)
        group.add_argument(
            "--kd_conf",
            action=NestedDictAction,
            default=dict(),
            help="What is compared between student and teachers, and how strongly: "
            "fields below; empty: stock training",
        )
        parser.epilog = help_text()

    @classmethod
    def optional_data_names(
        cls, train: bool = True, inference: bool = False
    ) -> tuple[str, ...]:
        names = super().optional_data_names(train, inference)
        return names if inference else (*names, "kd_weight")

    @classmethod
    def main_worker(cls, args: argparse.Namespace) -> None:
        """The stock one, which loads every weight that `--init_param` names."""
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
                source = signals.source_of(args) if conf.needs_teacher else None
                make_student(model, conf, source, sampling_rate_of(vars(args)))
                if _has_weights(args):
                    check_weightable(model)
            teachers = [each.name for each in source.teachers] if source else []
            logging.info(f"Teachers: {teachers}; {conf}")
        return model

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """The stock ones; a student's also counts its updates and prunes it."""
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
    if not (_is_kd(args, conf) or conf.pruning or conf.init_from_teacher):
        return
    _check_parallel(args, conf)
    asking = [n for n in ("losses", "hidden", "init_from_teacher") if getattr(conf, n)]
    signals.check_source_options(args, asking)


def _check_parallel(args: argparse.Namespace, conf: KDConf) -> None:
    """Refuse multi-GPU training that KD or pruning does not support."""
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
    compares_hypotheses = any(loss.nodes == "sequence" for loss in conf.possible_losses)
    if compares_hypotheses and getattr(args, "multiple_iterator", False):
        raise ValueError(
            "kd_conf.losses: nodes: sequence compares the hypotheses of an utterance, "
            "which a split set separates; set --num_splits_asr 1"
        )
    if compares_hypotheses and torch.distributed.is_initialized():
        raise ValueError(
            "kd_conf.losses: nodes: sequence compares hypotheses of a batch, which "
            "ESPnet distributes over the ranks; train on one GPU, or weight the "
            "hypotheses in the data instead (kd_set --weights posterior)"
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
