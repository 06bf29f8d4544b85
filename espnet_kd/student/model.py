"""A stock ESPnet model that also learns from teachers, in one forward pass.

A model becomes a student by `make_student`: its class changes, its parameters and
state_dict do not, so that stock ESPnet resumes, averages and decodes it.
"""

from __future__ import annotations

import dataclasses

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor

from espnet_kd import standin
from espnet_kd.student.config import KDConf
from espnet_kd.student.distillation import Distillation, Strides, Symbols
from espnet_kd.student.outputs import (
    AttentionTap,
    Frames,
    Lattice,
    Outputs,
    TransducerTap,
    weighted_mean,
)
from espnet_kd.student.rates import strides_to_common_rate
from espnet_kd.teacher.soft import SoftTeacher, frame_rate, nodes_of


class Student:
    """Mixed in before an ESPnet model class."""

    def forward(
        self,
        speech: Tensor,
        speech_lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        kd_weight: Tensor | None = None,
        kd_weight_lengths: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """ESPnet's losses plus the KD losses.

        Args:
            speech: waveforms (B, samples).
            speech_lengths: samples of each, (B,).
            text: token ids (B, L).
            text_lengths: tokens of each, (B,).
            kd_weight: weight of each utterance (B, 1) as a target; 1 where absent.

        Returns:
            In training hard_weight * ESPnet's loss + the weighted KD losses; in
            evaluation ESPnet's loss alone, so that runs compare. Statistics; weight.
        """
        weights = kd_weight.flatten() if kd_weight is not None else None
        self._outputs = Outputs(weights=weights)
        loss, stats, weight = super().forward(
            speech, speech_lengths, text, text_lengths, **kwargs
        )
        if getattr(self, "use_auxiliary_ctc", False) and stats["loss_aux_ctc"] is None:
            # ESPnet leaves a loss of 0 out, but all ranks need the same statistics.
            stats["loss_aux_ctc"] = torch.full_like(loss, torch.nan)
        distillation = self._distillation
        if distillation is not None:
            with torch.autocast(speech.device.type, enabled=False):
                kd_loss, kd_stats = distillation(self._outputs, speech, speech_lengths)
            stats = {**stats, **kd_stats, "loss_hard": loss.detach()}
            if self.training:
                loss = distillation.conf.hard_weight * loss + kd_loss
                stats["loss"] = loss.detach()
        self._outputs = Outputs()
        return force_gatherable((loss, stats, weight), speech.device)

    def _apply(self, fn, *args, **kwargs):
        # Teachers are no sub-modules; they follow the student to its device.
        if self._distillation is not None:
            self._distillation.teacher.apply(fn)
        return super()._apply(fn, *args, **kwargs)


class ASRStudent(Student, ESPnetASRModel):
    """Student of ESPnet's `asr` task: CTC, attention or transducer decoder."""

    def _tap(self) -> None:
        if self.ctc is not None:
            self._ctc_loss_fn = self.ctc.loss_fn
            self.ctc.loss_fn = self._tapped_ctc_loss
        if self.use_transducer_decoder:
            self.criterion_transducer = TransducerTap(
                self.criterion_transducer, lambda: self._outputs, self.blank_id
            )
        elif hasattr(self, "criterion_att"):
            self.criterion_att = AttentionTap(self.criterion_att, lambda: self._outputs)

    def _tapped_ctc_loss(
        self, logits: Tensor, targets: Tensor, frames: Tensor, label_lengths: Tensor
    ) -> Tensor:
        time_first = self.ctc.ctc_type not in ("gtnctc", "brctc")
        if self._outputs.frames is None:  # later calls are intermediate CTC layers
            by_utterance = logits.transpose(0, 1) if time_first else logits
            self._outputs.frames = Frames(by_utterance, frames)
        weights = self._outputs.weights
        if weights is None:
            return self._ctc_loss_fn(logits, targets, frames, label_lengths)
        losses = self.ctc.ctc_loss(
            logits.log_softmax(2).float(), targets, frames, label_lengths
        )
        return weighted_mean(weights, losses)


class TransducerStudent(Student, ESPnetASRTransducerModel):
    """Student of ESPnet's `asr_transducer` task: full or k2 pruned loss."""

    def _tap(self) -> None:
        if self.use_auxiliary_ctc:
            self.ctc_lin.register_forward_hook(self._keep_ctc_logits)
        if not self.use_k2_pruned_loss:
            standin.install()
            from warprnnt_pytorch import RNNTLoss

            self.criterion_transducer = TransducerTap(
                RNNTLoss(reduction="mean", fastemit_lambda=self.fastemit_lambda),
                lambda: self._outputs,
                blank=0,
            )

    def _keep_ctc_logits(self, module, inputs, logits: Tensor) -> None:
        self._outputs.frames = Frames(logits, None)

    def _calc_ctc_loss(
        self, encoder_out: Tensor, target: Tensor, t_len: Tensor, u_len: Tensor
    ) -> Tensor:
        loss = super()._calc_ctc_loss(encoder_out, target, t_len, u_len)
        frames = self._outputs.frames
        frames.lengths = t_len
        if self._outputs.weights is None:
            return loss
        losses = torch.nn.functional.ctc_loss(
            frames.logits.transpose(0, 1).log_softmax(-1),
            target,
            t_len,
            u_len,
            zero_infinity=True,
            reduction="none",
        )
        return weighted_mean(self._outputs.weights, losses)

    def _calc_k2_transducer_pruned_loss(
        self,
        encoder_out: Tensor,
        decoder_out: Tensor,
        labels: Tensor,
        encoder_out_len: Tensor,
        decoder_out_len: Tensor,
        **options,
    ) -> Tensor:
        def logits() -> Tensor:
            # In fp32: KD is computed outside of autocast.
            return self.joint_network(
                encoder_out.float().unsqueeze(2), decoder_out.float().unsqueeze(1)
            )

        self._outputs.lattice = Lattice(
            logits, labels, encoder_out_len, decoder_out_len
        )
        weights, reduction = self._outputs.weights, options.get("reduction", "mean")
        if weights is not None:
            options["reduction"] = "none"
        loss = super()._calc_k2_transducer_pruned_loss(
            encoder_out,
            decoder_out,
            labels,
            encoder_out_len,
            decoder_out_len,
            **options,
        )
        if weights is not None:
            loss = weighted_mean(weights, loss)
            loss = loss * len(weights) if reduction == "sum" else loss
        return loss


STUDENTS = {
    ESPnetASRModel: ASRStudent,
    ESPnetASRTransducerModel: TransducerStudent,
}


def make_student(
    model: torch.nn.Module,
    conf: KDConf,
    teachers: dict[str, torch.nn.Module],
    weights: list[float],
    sampling_rate: int,
) -> torch.nn.Module:
    """Turn a stock ESPnet model into a student of `teachers`, in place.

    Args:
        model: `ESPnetASRModel` or `ESPnetASRTransducerModel`.
        conf: validated `kd_conf`. Without losses the model only learns to weight its
            own losses by `kd_weight`.
        teachers: trained models by the name used in messages (their configuration).
        weights: one for each teacher.
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
    if conf.losses:
        conf = _with_known_nodes(model, conf, teachers)
        for name, teacher in teachers.items():
            check_token_lists(model.token_list, teacher.token_list, name)
        strides = _strides(model, conf, teachers, sampling_rate)
        symbols = Symbols(
            blank=getattr(model, "blank_id", 0),
            sos=getattr(model, "sos", model.vocab_size - 1),
            padding=model.ignore_id,
        )
        teacher = SoftTeacher(list(teachers.values()), weights)
        distillation = Distillation(conf, teacher, strides, symbols)
    model.__class__ = STUDENTS[type(model)]
    model._outputs = Outputs()
    model._distillation = distillation
    model._tap()
    return model


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


def _with_known_nodes(
    model: torch.nn.Module, conf: KDConf, teachers: dict[str, torch.nn.Module]
) -> KDConf:
    """One loss for each kind of nodes; refuses nodes that a model lacks."""
    have = {"the student": nodes_of(model)}
    have.update({name: nodes_of(teacher) for name, teacher in teachers.items()})
    common = set.intersection(*have.values())
    losses = []
    for index, loss in enumerate(conf.losses):
        wanted = [loss.nodes] if isinstance(loss.nodes, str) else loss.nodes
        known = [nodes for nodes in wanted if nodes in common]
        if not known or (isinstance(loss.nodes, str) and len(known) != 1):
            lists = "; ".join(f"{who}: {sorted(what)}" for who, what in have.items())
            raise ValueError(
                f"kd_conf.losses[{index}].nodes: {loss.nodes!r} is not in every model "
                f"({lists}). `frames` needs a CTC branch, `tokens` an attention "
                "decoder, `lattice` and `path` a transducer"
            )
        losses += [dataclasses.replace(loss, nodes=nodes) for nodes in known]
    return dataclasses.replace(conf, losses=tuple(losses))


def check_token_lists(student: list[str], teacher: list[str], name: str) -> None:
    """Refuse token lists that differ: a posterior over other tokens says nothing."""
    if list(student) == list(teacher):
        return
    differing = [i for i, (s, t) in enumerate(zip(student, teacher)) if s != t]
    index = differing[0] if differing else min(len(student), len(teacher))
    at = [
        tokens[index] if index < len(tokens) else "(end)"
        for tokens in (student, teacher)
    ]
    raise ValueError(
        f"token_list: the student has {len(student)} tokens, {name} has "
        f"{len(teacher)}; they first differ at index {index}: {at[0]!r} and {at[1]!r}. "
        "Train the student with the teacher's token list, or use sequence-level KD "
        "(teacher_decode and kd_set; it goes through text)"
    )


def _strides(
    model: torch.nn.Module,
    conf: KDConf,
    teachers: dict[str, torch.nn.Module],
    sampling_rate: int,
) -> Strides:
    if all(loss.nodes == "tokens" for loss in conf.losses):
        return Strides(1, [1] * len(teachers))
    models = {"the student": model, **teachers}
    rates = {name: frame_rate(each, sampling_rate) for name, each in models.items()}
    strides = strides_to_common_rate(rates)
    return Strides(strides["the student"], [strides[name] for name in teachers])
