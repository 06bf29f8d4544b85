"""Keeping what a student's one forward pass makes, and weighting its own losses.

ESPnet's models hand their outputs to criteria (modules or functions). A tap stands in
front of a criterion, keeps what passes, and calls it. With weights of utterances (the
hypotheses of sequence-level KD) the tap computes the same loss per utterance instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor


@dataclass
class Frames:
    """CTC logits (B, T, V) and frames (B,)."""

    logits: Tensor
    lengths: Tensor


@dataclass
class Tokens:
    """Attention logits (B, L, V) and their targets (B, L): y_1 .. y_U <eos> padding."""

    logits: Tensor
    targets: Tensor


@dataclass
class Lattice:
    """Joint logits (B, T, U+1, V) of labels (B, U), frames (B,), labels (B,).

    `logits` is called when a KD loss asks: a pruned student makes them only then.
    """

    logits: Callable[[], Tensor]
    labels: Tensor
    frames: Tensor
    label_lengths: Tensor


@dataclass
class Outputs:
    """What one forward pass left behind, and the weights (B,) of its utterances."""

    weights: Tensor | None = None
    frames: Frames | None = None
    tokens: Tokens | None = None
    lattice: Lattice | None = None


def weighted_mean(weights: Tensor, losses: Tensor) -> Tensor:
    """sum_b w_b loss_b / B of losses (B,)."""
    return (weights.to(losses.dtype) * losses).mean()


class AttentionTap(torch.nn.Module):
    """In front of ESPnet's LabelSmoothingLoss."""

    def __init__(self, criterion: torch.nn.Module, outputs: Callable[[], Outputs]):
        super().__init__()
        self.criterion = criterion
        self.outputs = outputs

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        outputs = self.outputs()
        outputs.tokens = Tokens(logits, targets)
        if outputs.weights is None:
            return self.criterion(logits, targets)
        losses = smoothed_cross_entropy(
            logits, targets, self.criterion.smoothing, self.criterion.padding_idx
        )
        if self.criterion.normalize_length:
            tokens = (targets != self.criterion.padding_idx).sum()
            losses = losses * len(targets) / tokens
        return weighted_mean(outputs.weights, losses)


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


class TransducerTap(torch.nn.Module):
    """In front of a full transducer loss with warprnnt's interface."""

    def __init__(
        self, criterion: torch.nn.Module, outputs: Callable[[], Outputs], blank: int
    ):
        super().__init__()
        self.criterion = criterion
        self.outputs = outputs
        self.blank = blank

    def forward(
        self, logits: Tensor, labels: Tensor, frames: Tensor, label_lengths: Tensor
    ) -> Tensor:
        from espnet_kd.lattice import transducer_loss

        outputs = self.outputs()
        outputs.lattice = Lattice(lambda: logits, labels, frames, label_lengths)
        if outputs.weights is None:
            return self.criterion(logits, labels, frames, label_lengths)
        losses = transducer_loss(
            logits, labels, frames, label_lengths, blank=self.blank, reduction="none"
        )
        return weighted_mean(outputs.weights, losses)
