"""A stock ESPnet model that also learns from teachers, in one forward pass.

A model becomes a student by `make_student`: its class changes, its parameters and
state_dict do not, so that stock ESPnet resumes, averages and decodes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor

from espnet_kd.compress.pruning import Pruner
from espnet_kd.config.schedules import scheduled_values
from espnet_kd.distill.batch import BatchKD, Distillation
from espnet_kd.distill.node_kinds import TERMS
from espnet_kd.distill.outputs import Outputs
from espnet_kd.distill.sharing import distinct_rows
from espnet_kd.student.criteria import AttentionTap, CTCTap, Recorder, TransducerTap


class Student:
    """Mixed in before an ESPnet model class."""

    updates = 0  # steps of the optimiser, which keeps count of them
    pruner: Pruner | None = None
    distillation: Distillation | None = None
    scheduled: Mapping[str, Any]  # configurations by their names in the statistics
    recorder: Recorder

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
        rows = distinct_rows(speech, speech_lengths)
        outputs, kd = Outputs(rows, weights), None
        if self.distillation is not None:
            utterances = kwargs.get("utt_id", ())
            kd = self.distillation.start(
                speech,
                speech_lengths,
                rows,
                utterances,
                self.updates,
                self.training,
            )
        self.recorder.start(outputs, kd and kd.reading)
        try:
            loss, stats, weight = super().forward(
                speech, speech_lengths, text, text_lengths, **kwargs
            )
        finally:
            self.recorder.stop()
        if getattr(self, "use_auxiliary_ctc", False) and stats["loss_aux_ctc"] is None:
            # ESPnet drops a loss of 0, but all ranks need the same statistics.
            stats["loss_aux_ctc"] = torch.full_like(loss, torch.nan)
        if kd is not None:
            loss, stats = self._with_kd(loss, stats, kd, outputs)
        if self.pruner is not None:
            stats.update(self.pruner.stats(self.updates))
        return force_gatherable((loss, stats, weight), speech.device)

    def _with_kd(
        self, loss: Tensor, stats: dict[str, Tensor], kd: BatchKD, outputs: Outputs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and statistics of a batch with its KD losses."""
        with torch.autocast(loss.device.type, enabled=False):
            kd_loss, kd_stats = kd.losses(outputs)
        stats = {**stats, **kd_stats, "loss_hard": loss.detach()}
        if self.training:
            loss = kd.conf.hard_weight * loss + kd_loss
            stats["loss"] = loss.detach()
            stats.update(scheduled_values(self.scheduled, self.updates))
        return loss, stats

    def encode(self, speech: Tensor, speech_lengths: Tensor):
        """ESPnet's `encode`, with one pass for the entries that have the same audio."""
        outputs = self.recorder.outputs
        if outputs is None:  # decoding, plots of attention
            rows = distinct_rows(speech, speech_lengths)
        else:
            rows = outputs.rows
        encoded = super().encode(*rows.take(speech, speech_lengths))
        return rows.expand(encoded)

    @property
    def asks_lattice(self) -> bool:
        """Whether a KD loss may be computed on a transducer lattice."""
        if self.distillation is None:
            return False
        kinds = {loss.nodes for loss in self.distillation.conf.losses}
        return not kinds.isdisjoint((*TERMS, "sequence"))

    def _apply(self, fn, *args, **kwargs):
        # Teachers are not submodules; they follow the student to its device.
        if self.distillation is not None:
            self.distillation.source.apply(fn)
        return super()._apply(fn, *args, **kwargs)


class ASRStudent(Student, ESPnetASRModel):
    """Student of ESPnet's `asr` task: CTC, attention or transducer decoder."""

    def tap(self) -> None:
        """Put taps in front of the criteria."""
        if self.ctc is not None:
            self.ctc.loss_fn = CTCTap(self.ctc, self.recorder)
        if self.use_transducer_decoder:
            self.criterion_transducer = TransducerTap(
                self.criterion_transducer, self.recorder
            )
        elif hasattr(self, "criterion_att"):
            self.criterion_att = AttentionTap(self.criterion_att, self.recorder)
