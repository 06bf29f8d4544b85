"""A stock ESPnet model becomes a student."""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel

from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.losses import NodeLossConf
from espnet_kd.distill.batch import Distillation
from espnet_kd.distill.compatibility import (
    check_token_lists,
    compares_frames,
    strides_to_common_rate,
    with_known_nodes,
)
from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.hidden import make_hidden_kd
from espnet_kd.distill.node_kinds import classes_of
from espnet_kd.distill.signals import Source, SpecialTokens
from espnet_kd.lattice.backends import TOPOLOGIES
from espnet_kd.losses import divergence_of
from espnet_kd.losses.classes import check_fit
from espnet_kd.models.branches import frame_rate, nodes_of_model
from espnet_kd.models.joint import LeanJointNetwork
from espnet_kd.student.criteria import Recorder
from espnet_kd.student.model import ASRStudent
from espnet_kd.student.transducer import TransducerStudent

STUDENTS = {
    ESPnetASRModel: ASRStudent,
    ESPnetASRTransducerModel: TransducerStudent,
}
THE_STUDENT = "the student"  # its name in messages


def make_student(
    model: torch.nn.Module,
    conf: KDConf,
    source: Source | None,
    sampling_rate: int,
) -> torch.nn.Module:
    """Turn a stock ESPnet model into a student, in place.

    Args:
        model: `ESPnetASRModel` or `ESPnetASRTransducerModel`.
        conf: validated `kd_conf`. Without losses the model only weights its own losses
            by `kd_weight`.
        source: where the teachers' signals come from; None where `conf` needs none.
        sampling_rate: of the audio, Hz.

    Raises:
        ValueError: the model, its nodes, token lists or frame rates do not fit.
    """
    if type(model) not in STUDENTS:
        raise ValueError(
            f"model: {type(model).__name__} cannot be a student; KD works with "
            "`model: espnet` of the asr task and with asr_transducer"
        )
    distillation = None
    scheduled = {"": conf}  # by the names in the statistics
    if conf.needs_teacher:
        distillation = _distillation(model, conf, source, sampling_rate)
        conf = distillation.conf
        scheduled.update(zip(_short(distillation.names), conf.losses))
        if distillation.hidden is not None:
            scheduled.update(zip(_short(distillation.hidden.names), conf.hidden))
    if _can_be_lean(model, conf):
        model.joint_network.__class__ = LeanJointNetwork
    model.__class__ = STUDENTS[type(model)]
    model.recorder = Recorder(getattr(model, "blank_id", 0))
    model.distillation = distillation
    model.scheduled = scheduled
    hidden = distillation and distillation.hidden
    if hidden is not None and hidden.projections is not None:
        model.kd_projections = hidden.projections
    model.tap()
    return model


def _distillation(
    model: torch.nn.Module, conf: KDConf, source: Source, sampling_rate: int
) -> Distillation:
    have = {THE_STUDENT: nodes_of_model(model)}
    have |= {teacher.name: teacher.nodes for teacher in source.teachers}
    conf = with_known_nodes(conf, have)
    for teacher in source.teachers:
        # Hidden layers do not depend on tokens.
        if conf.losses and teacher.token_list is not None:
            check_token_lists(model.token_list, teacher.token_list, teacher.name)
    symbols = SpecialTokens(
        blank=getattr(model, "blank_id", 0),
        sos=getattr(model, "sos", model.vocab_size - 1),
        padding=model.ignore_id,
    )
    rates = _rates(model, conf, source, sampling_rate)
    for loss in conf.losses:
        if isinstance(loss, NodeLossConf):
            check_fit(classes_of(loss), divergence_of(loss.divergence))
    source.check(conf.losses, rates)
    hidden = None
    if conf.hidden:
        hidden = make_hidden_kd(conf.hidden, model, source, sampling_rate)
    return Distillation(conf, source, rates, symbols, hidden)


def _rates(
    model: torch.nn.Module, conf: KDConf, source: Source, sampling_rate: int
) -> Rates:
    names = [teacher.name for teacher in source.teachers]
    if not compares_frames(conf):
        return Rates(1, dict.fromkeys(names, 1), conf.rate)
    rates = {THE_STUDENT: frame_rate(model, sampling_rate)}
    rates |= source.frame_rates(sampling_rate)
    strides = strides_to_common_rate(rates)
    return Rates(strides.pop(THE_STUDENT), strides, conf.rate)


def _can_be_lean(model: torch.nn.Module, conf: KDConf) -> bool:
    """Whether the joint network of a transducer is computed in chunks.

    Raises:
        ValueError: `lean_joint` asks for it, and an option of the model forbids it.
    """
    if getattr(model, "joint_network", None) is None or conf.lean_joint is False:
        return False
    arguments = getattr(model, "k2_pruned_loss_args", {})
    is_pruned = getattr(model, "use_k2_pruned_loss", False)
    forbids = {
        "fastemit_lambda": getattr(model, "fastemit_lambda", 0) and not is_pruned,
        "transducer_multi_blank_durations": getattr(
            model, "transducer_multi_blank_durations", None
        ),
        # Our loss takes the model's blank for what ends an alignment.
        "k2_pruned_loss_args.padding_idx": is_pruned
        and arguments.get("padding_idx", 0) != getattr(model, "blank_id", 0),
        "k2_pruned_loss_args.loss_type": is_pruned
        and arguments.get("loss_type", "regular") not in TOPOLOGIES,
    }
    forbids = [name for name, is_set in forbids.items() if is_set]
    if forbids and conf.lean_joint:
        raise ValueError(
            f"kd_conf.lean_joint: the model's {forbids[0]} needs the whole tensor of "
            "logits; leave lean_joint out, or that option"
        )
    return not forbids


def _short(names: list[str]) -> list[str]:
    return [name[len("loss_kd_") :] for name in names]


def check_weightable(model: torch.nn.Module) -> None:
    """Refuse a model with a loss that cannot be weighted by utterance (`kd_weight`).

    Raises:
        ValueError: names the option of the loss.
    """
    ctc = getattr(model, "ctc", None)
    refused = {
        "ctc_conf.ctc_type; use builtin": ctc and ctc.ctc_type != "builtin",
        "model_conf.transducer_multi_blank_durations; remove it": getattr(
            model, "transducer_multi_blank_durations", None
        ),
        "model_conf.auxiliary_lm_loss_weight; set it to 0": getattr(
            model, "use_auxiliary_lm_loss", False
        ),
        "model_conf.fastemit_lambda; set it to 0": getattr(model, "fastemit_lambda", 0),
    }
    for option, is_used in refused.items():
        if is_used:
            raise ValueError(
                f"{option}. Its loss cannot be weighted by utterance, as the weighted "
                "hypotheses of the training data (kd_weight) need"
            )
