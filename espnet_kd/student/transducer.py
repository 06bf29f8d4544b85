"""The student of ESPnet's `asr_transducer` task."""

from __future__ import annotations

import torch
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from torch import Tensor

from espnet_kd.distill.outputs import Frames, Lattice
from espnet_kd.lattice.backends import TOPOLOGIES
from espnet_kd.lattice.masks import length_mask
from espnet_kd.models import warprnnt
from espnet_kd.models.joint import LeanJointNetwork, factored_joint
from espnet_kd.student.criteria import TransducerTap, weighted_sum_per_batch
from espnet_kd.student.model import Student


class TransducerStudent(Student, ESPnetASRTransducerModel):
    """Student of ESPnet's `asr_transducer` task: full or k2 pruned loss."""

    def tap(self) -> None:
        """Put taps in front of the criteria."""
        if self.use_auxiliary_ctc:
            self.ctc_lin.register_forward_hook(self._keep_ctc_logits)
        if not self.use_k2_pruned_loss:
            warprnnt.install()
            from warprnnt_pytorch import RNNTLoss

            self.criterion_transducer = TransducerTap(
                RNNTLoss(reduction="mean", fastemit_lambda=self.fastemit_lambda),
                self.recorder,
            )

    def _keep_ctc_logits(self, module, inputs, logits: Tensor) -> None:
        if self.recorder.outputs is not None:
            self.recorder.outputs.frames = Frames(logits, None, None, None)

    def _calc_ctc_loss(
        self, encoder_out: Tensor, target: Tensor, t_len: Tensor, u_len: Tensor
    ) -> Tensor:
        loss = super()._calc_ctc_loss(encoder_out, target, t_len, u_len)
        outputs = self.recorder.outputs
        if outputs is None:
            return loss
        frames = outputs.frames
        frames.lengths, frames.targets, frames.label_lengths = t_len, target, u_len
        if outputs.weights is None:
            return loss
        losses = torch.nn.functional.ctc_loss(
            frames.logits.transpose(0, 1).log_softmax(-1),
            target,
            t_len,
            u_len,
            zero_infinity=True,
            reduction="none",
        )
        return weighted_sum_per_batch(outputs.weights, losses)

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
        weights, reduction = self.recorder.weights, options.get("reduction", "mean")
        if self.recorder.outputs is not None:
            self.recorder.outputs.lattice = lattice
        if isinstance(self.joint_network, LeanJointNetwork):
            losses = self._pruned_losses(lattice, encoder_out, decoder_out, **options)
        else:
            if self.asks_lattice:  # then for its band, too
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
        pruned = self.recorder.transducer_losses(lattice)
        # ESPnet's warm-up: the simple loss, which chooses the band, comes first.
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
