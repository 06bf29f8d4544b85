"""Taps: they record what passes on to ESPnet's criteria, and weight its losses.

ESPnet's models hand their outputs to criteria (modules or functions). A tap takes the
place of a criterion, records its inputs, and calls it. With weights of utterances (the
hypotheses of sequence-level KD) the tap computes the same loss per utterance instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.distill.lattice import LatticeReading
from espnet_kd.distill.outputs import Frames, Lattice, Outputs, Tokens
from espnet_kd.lattice import transducer_loss
from espnet_kd.lattice.logits import FactoredLogits, Logits


class Recorder:
    """Holds what the taps of a student record while its forward pass runs.

    Args:
        blank: index of blank.

    Attributes:
        outputs: of the batch; None outside of a forward pass.
    """

    def __init__(self, blank: int) -> None:
        self.blank = blank
        self.outputs: Outputs | None = None
        self.reading: LatticeReading | None = None

    def start(self, outputs: Outputs, reading: LatticeReading | None) -> None:
        """Record from now on; `reading` reads the transducer lattices for KD."""
        self.outputs, self.reading = outputs, reading

    def stop(self) -> None:
        """Forget the batch, whose graph would otherwise stay in memory."""
        self.outputs = self.reading = None

    @property
    def weights(self) -> Tensor | None:
        """Weights of the utterances as targets, (B,)."""
        return None if self.outputs is None else self.outputs.weights

    def transducer_losses(self, lattice: Lattice) -> Tensor:
        """-log P(labels) (B,) of a lattice, with its KD losses from the same pass."""
        reading = self.reading or LatticeReading(blank=self.blank)
        return reading.transducer_losses(lattice)


class AttentionTap(torch.nn.Module):
    """In front of ESPnet's LabelSmoothingLoss."""

    def __init__(self, criterion: torch.nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.criterion = criterion
        self.recorder = recorder

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.recorder.outputs is not None:
            self.recorder.outputs.tokens = Tokens(logits, targets)
        if self.recorder.weights is None:
            return self.criterion(logits, targets)
        losses = smoothed_cross_entropy(
            logits, targets, self.criterion.smoothing, self.criterion.padding_idx
        )
        if self.criterion.normalize_length:
            tokens = (targets != self.criterion.padding_idx).sum()
            losses = losses * len(targets) / tokens
        return weighted_sum_per_batch(self.recorder.weights, losses)


class TransducerTap(torch.nn.Module):
    """In front of a full transducer loss with warprnnt's interface."""

    def __init__(self, criterion: torch.nn.Module, recorder: Recorder) -> None:
        super().__init__()
        self.criterion = criterion
        self.recorder = recorder

    def forward(
        self, logits: Logits, labels: Tensor, frames: Tensor, label_lengths: Tensor
    ) -> Tensor:
        lattice = Lattice(logits, labels, frames, label_lengths)
        if self.recorder.outputs is not None:
            self.recorder.outputs.lattice = lattice
        weights = self.recorder.weights
        if isinstance(logits, FactoredLogits):
            losses = self.recorder.transducer_losses(lattice)
            if weights is None:
                return losses.mean()
            return weighted_sum_per_batch(weights, losses)
        if weights is None:
            return self.criterion(logits, labels, frames, label_lengths)
        losses = transducer_loss(
            logits,
            labels,
            frames,
            label_lengths,
            blank=self.recorder.blank,
            reduction="none",
        )
        return weighted_sum_per_batch(weights, losses)


class CTCTap:
    """In place of `loss_fn` of ESPnet's CTC module."""

    def __init__(self, ctc: torch.nn.Module, recorder: Recorder) -> None:
        self.ctc_loss = ctc.ctc_loss
        self.loss_fn = ctc.loss_fn
        self.is_time_first = ctc.ctc_type not in ("gtnctc", "brctc")
        self.recorder = recorder

    def __call__(
        self, logits: Tensor, targets: Tensor, frames: Tensor, label_lengths: Tensor
    ) -> Tensor:
        outputs = self.recorder.outputs
        # Later calls in a forward pass are intermediate CTC layers.
        if outputs is not None and outputs.frames is None:
            by_utterance = logits.transpose(0, 1) if self.is_time_first else logits
            outputs.frames = Frames(by_utterance, frames, targets, label_lengths)
        if self.recorder.weights is None:
            return self.loss_fn(logits, targets, frames, label_lengths)
        losses = self.ctc_loss(
            logits.log_softmax(2).float(), targets, frames, label_lengths
        )
        return weighted_sum_per_batch(self.recorder.weights, losses)


def weighted_sum_per_batch(weights: Tensor, losses: Tensor) -> Tensor:
    """sum_b w_b loss_b / B of losses (B,)."""
    return (weights.to(losses.dtype) * losses).mean()


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float, padding: int
) -> Tensor:
    """ESPnet's label smoothing loss of each utterance, (B,).

    KL(q || p) summed over tokens, where q has 1 - smoothing on the target and the rest
    spread evenly over the other classes. logits (B, L, V), targets (B, L).
    """
    log_probs = logits.float().log_softmax(-1)
    valid = targets != padding
    other = smoothing / (logits.size(-1) - 1)
    target = log_probs.gather(-1, targets.masked_fill(~valid, 0).unsqueeze(-1))
    cross = (1 - smoothing - other) * target.squeeze(-1) + other * log_probs.sum(-1)
    on, off = log_probs.new_tensor(1 - smoothing), log_probs.new_tensor(other)
    entropy = torch.xlogy(on, on) + (logits.size(-1) - 1) * torch.xlogy(off, off)
    return (entropy - cross).masked_fill(~valid, 0.0).sum(1)
