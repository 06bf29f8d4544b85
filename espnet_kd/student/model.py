"""A stock ESPnet model that also learns from teachers, in one forward pass.

A model becomes a student by `make_student`: its class changes, its parameters and
state_dict do not, so that stock ESPnet resumes, averages and decodes it.
"""

from __future__ import annotations

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor

from espnet_kd.compress.pruning import Pruner
from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.schedules import scheduled_values
from espnet_kd.distill.batch import BatchKD, Distillation, Strides, Symbols
from espnet_kd.distill.fitting import (
    check_token_lists,
    compares_frames,
    strides_to_common_rate,
    with_known_nodes,
)
from espnet_kd.distill.hidden import make_hidden_kd
from espnet_kd.distill.outputs import (
    AttentionTap,
    Frames,
    Lattice,
    Outputs,
    TransducerTap,
    weighted_mean,
)
from espnet_kd.distill.sharing import distinct_rows
from espnet_kd.lattice.backends import TOPOLOGIES
from espnet_kd.lattice.masks import length_mask
from espnet_kd.models import warprnnt
from espnet_kd.models.branches import frame_rate, nodes_of_model
from espnet_kd.models.joint import LeanJointNetwork, factored_joint
from espnet_kd.teacher.ensemble import SoftTeacher


class Student:
    """Mixed in before an ESPnet model class."""

    updates = 0  # steps of the optimiser, which keeps count of them
    pruner: Pruner | None = None

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
        outputs = self._outputs = Outputs(weights=weights)
        distillation = self._distillation
        if distillation is not None:
            now = distillation.conf.at(self.updates)
            outputs.kd = BatchKD(
                distillation,
                now.losses,
                outputs,
                speech,
                speech_lengths,
                lambda: self._rows,
            )
        loss, stats, weight = super().forward(
            speech, speech_lengths, text, text_lengths, **kwargs
        )
        if getattr(self, "use_auxiliary_ctc", False) and stats["loss_aux_ctc"] is None:
            # ESPnet leaves a loss of 0 out, but all ranks need the same statistics.
            stats["loss_aux_ctc"] = torch.full_like(loss, torch.nan)
        if distillation is not None:
            with torch.autocast(speech.device.type, enabled=False):
                kd_loss, kd_stats = distillation(outputs.kd)
                if self._hidden is not None:
                    _ = outputs.kd.encoded  # hooks keep what the teachers' layers made
                    hidden_loss, hidden_stats = self._hidden(
                        now.hidden, self._rows, weights
                    )
                    kd_loss = kd_loss + hidden_loss
                    kd_stats.update(hidden_stats)
            stats = {**stats, **kd_stats, "loss_hard": loss.detach()}
            if self.training:
                loss = now.hard_weight * loss + kd_loss
                stats["loss"] = loss.detach()
                stats.update(scheduled_values(self._scheduled, self.updates))
        if self.pruner is not None:
            stats.update(self.pruner.stats(self.updates))
        outputs.kd = None  # it holds the outputs: a cycle would keep their memory
        self._outputs = Outputs()
        return force_gatherable((loss, stats, weight), speech.device)

    def encode(self, speech: Tensor, speech_lengths: Tensor):
        """ESPnet's `encode`, with one pass for the entries that have the same audio."""
        rows = self._rows = distinct_rows(speech, speech_lengths)
        encoded = super().encode(*rows.take(speech, speech_lengths))
        return rows.expand(encoded)

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
            self._outputs.frames = Frames(by_utterance, frames, targets, label_lengths)
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
            warprnnt.install()
            from warprnnt_pytorch import RNNTLoss

            self.criterion_transducer = TransducerTap(
                RNNTLoss(reduction="mean", fastemit_lambda=self.fastemit_lambda),
                lambda: self._outputs,
                blank=0,
            )

    def _keep_ctc_logits(self, module, inputs, logits: Tensor) -> None:
        self._outputs.frames = Frames(logits, None, None, None)

    def _calc_ctc_loss(
        self, encoder_out: Tensor, target: Tensor, t_len: Tensor, u_len: Tensor
    ) -> Tensor:
        loss = super()._calc_ctc_loss(encoder_out, target, t_len, u_len)
        frames = self._outputs.frames
        frames.lengths, frames.targets, frames.label_lengths = t_len, target, u_len
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
        lattice = Lattice(
            factored_joint(self.joint_network, encoder_out, decoder_out),
            labels,
            encoder_out_len,
            decoder_out_len,
        )
        weights, reduction = self._outputs.weights, options.get("reduction", "mean")
        if isinstance(self.joint_network, LeanJointNetwork):
            losses = self._pruned_losses(lattice, encoder_out, decoder_out, **options)
        else:
            self._outputs.lattice = lattice
            kd = self._outputs.kd
            if kd is not None and kd.asks_lattice:  # then for its band, too
                with torch.no_grad():
                    self._simple_losses(lattice, encoder_out, decoder_out, **options)
            stock = dict(
                options, reduction="none" if weights is not None else reduction
            )
            losses = super()._calc_k2_transducer_pruned_loss(
                encoder_out,
                decoder_out,
                labels,
                encoder_out_len,
                decoder_out_len,
                **stock,
            )
            if weights is None:
                return losses
        if weights is not None:
            losses = weights.to(losses.dtype) * losses
        return losses.sum() if reduction == "sum" else losses.mean()

    def _pruned_losses(
        self,
        lattice: Lattice,
        encoder_out: Tensor,
        decoder_out: Tensor,
        simple_loss_scaling: float = 0.5,
        padding_idx: int = 0,
        **options,
    ) -> Tensor:
        """ESPnet's k2 pruned loss (B,), its band read together with the KD losses.

        Arguments as ESPnet's; `k2_pruned_loss_args` of a configuration.
        """
        self.steps_num += 1
        warm = (
            min(self.steps_num / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        )
        simple = self._simple_losses(
            lattice, encoder_out, decoder_out, padding_idx=padding_idx, **options
        )
        pruned = self._outputs.transducer_losses(lattice, padding_idx)
        # ESPnet's warm-up: the simple loss alone can tell at first where to look.
        simple_scale = 1 - warm * (1 - simple_loss_scaling)
        return simple_scale * simple + (0.1 + 0.9 * warm) * pruned

    def _simple_losses(
        self,
        lattice: Lattice,
        encoder_out: Tensor,
        decoder_out: Tensor,
        prune_range: int = 5,
        lm_scale: float = 0.0,
        am_scale: float = 0.0,
        loss_type: str = "regular",
        padding_idx: int = 0,
        **_,
    ) -> Tensor:
        """ESPnet's loss (B,) of encoder plus decoder; its band goes to the lattice."""
        import k2

        frames, symbols = lattice.frames.long(), lattice.label_lengths.long()
        start = torch.zeros_like(frames)
        boundary = torch.stack([start, start, symbols, frames], dim=1)
        is_label = length_mask(symbols, lattice.labels.size(1))
        targets = lattice.labels.long().masked_fill(~is_label, padding_idx)
        lm, am = self.lm_proj(decoder_out), self.am_proj(encoder_out)
        with torch.autocast(encoder_out.device.type, enabled=False):
            simple, use = k2.rnnt_loss_smoothed(
                lm.float(),
                am.float(),
                targets,
                padding_idx,
                lm_only_scale=lm_scale,
                am_only_scale=am_scale,
                boundary=boundary,
                rnnt_type=loss_type,
                reduction="none",
                return_grad=True,
            )
        lattice.ranges = k2.get_rnnt_prune_ranges(*use, boundary, prune_range)
        if loss_type in TOPOLOGIES:  # else no transducer loss of ours is read from it
            lattice.topology = loss_type
        return simple


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
    distillation = hidden = None
    scheduled = {"": conf}  # by the names in the statistics
    if conf.needs_teacher:
        models = {"the student": model, **teachers}
        have = {name: nodes_of_model(each) for name, each in models.items()}
        conf = with_known_nodes(conf, have)
        for name, teacher in teachers.items():
            if conf.losses:  # hidden layers know of no tokens
                check_token_lists(model.token_list, teacher.token_list, name)
        strides = _strides(model, conf, teachers, sampling_rate)
        symbols = Symbols(
            blank=getattr(model, "blank_id", 0),
            sos=getattr(model, "sos", model.vocab_size - 1),
            padding=model.ignore_id,
        )
        teacher = SoftTeacher(list(teachers.values()), weights)
        distillation = Distillation(conf, teacher, strides, symbols)
        scheduled.update(zip(_short(distillation.names), conf.losses))
        if conf.hidden:
            both = (strides.student, strides.teachers)
            hidden = make_hidden_kd(
                conf.hidden, conf.rate, model, teachers, both, sampling_rate
            )
            scheduled.update(zip(_short(hidden.names), conf.hidden))
    if _can_be_lean(model, conf):
        model.joint_network.__class__ = LeanJointNetwork
    model.__class__ = STUDENTS[type(model)]
    model._outputs = Outputs()
    model._distillation = distillation
    model._hidden = hidden
    model._scheduled = scheduled
    if hidden is not None and hidden.projections is not None:
        model.kd_projections = hidden.projections
    model._tap()
    return model


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


def _strides(
    model: torch.nn.Module,
    conf: KDConf,
    teachers: dict[str, torch.nn.Module],
    sampling_rate: int,
) -> Strides:
    if not compares_frames(conf):
        return Strides(1, [1] * len(teachers))
    models = {"the student": model, **teachers}
    rates = {name: frame_rate(each, sampling_rate) for name, each in models.items()}
    strides = strides_to_common_rate(rates)
    return Strides(strides["the student"], [strides[name] for name in teachers])
