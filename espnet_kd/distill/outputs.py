"""Keeping what a student's one forward pass makes, and weighting its own losses.

ESPnet's models hand their outputs to criteria (modules or functions). A tap stands in
front of a criterion, keeps what passes, and calls it. With weights of utterances (the
hypotheses of sequence-level KD) the tap computes the same loss per utterance instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from espnet_kd.lattice import transducer_loss
from espnet_kd.lattice.logits import FactoredLogits, Logits
from espnet_kd.lattice.nodes import Layout, make_layout
from espnet_kd.losses import lattice_losses

if TYPE_CHECKING:
    from espnet_kd.distill.batch import BatchKD


@dataclass
class Frames:
    """CTC logits (B, T, V), frames (B,), labels, packed or (B, U), and their (B,)."""

    logits: Tensor
    lengths: Tensor
    targets: Tensor
    label_lengths: Tensor


@dataclass
class Tokens:
    """Attention logits (B, L, V) and their targets (B, L): y_1 .. y_U <eos> padding."""

    logits: Tensor
    targets: Tensor


@dataclass
class Lattice:
    """Joint network's logits (B, T, U+1, V) of labels (B, U), frames (B,), labels (B,).

    A pruned student adds the rows (B, T, S) that it reads, and its topology.
    """

    logits: Logits
    labels: Tensor
    frames: Tensor
    label_lengths: Tensor
    ranges: Tensor | None = None
    topology: str = "regular"


@dataclass
class Outputs:
    """What one forward pass left behind, and the weights (B,) of its utterances.

    `kd` holds the KD losses of the batch, where there are any.
    """

    weights: Tensor | None = None
    frames: Frames | None = None
    tokens: Tokens | None = None
    lattice: Lattice | None = None
    kd: BatchKD | None = None

    def transducer_losses(self, lattice: Lattice, blank: int) -> Tensor:
        """-log P(labels) (B,) of a lattice, with its KD losses from the same pass."""
        self.lattice = lattice
        if self.kd is not None:
            return self.kd.read_lattice(with_transducer=True)
        losses, _ = lattice_losses(
            lattice.logits,
            grid_of(lattice, blank),
            (),
            blank=blank,
            topology=lattice.topology,
        )
        return losses


def grid_of(lattice: Lattice, blank: int) -> Layout:
    """The nodes that the transducer loss of a lattice reads."""
    lengths = (lattice.frames, lattice.label_lengths)
    layout = make_layout(lattice.logits, lattice.labels, *lengths, blank)
    return layout.within(lattice.ranges)


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
        self, logits: Logits, labels: Tensor, frames: Tensor, label_lengths: Tensor
    ) -> Tensor:
        outputs = self.outputs()
        lattice = Lattice(logits, labels, frames, label_lengths)
        if isinstance(logits, FactoredLogits):
            losses = outputs.transducer_losses(lattice, self.blank)
            weights = outputs.weights
            return losses.mean() if weights is None else weighted_mean(weights, losses)
        outputs.lattice = lattice
        if outputs.weights is None:
            return self.criterion(logits, labels, frames, label_lengths)
        losses = transducer_loss(
            logits, labels, frames, label_lengths, blank=self.blank, reduction="none"
        )
        return weighted_mean(outputs.weights, losses)
