"""Nodes of a batch of transducer lattices, and the classes of the arcs between them.

The lattice of one utterance has a node (t, u) for each encoder frame t = 0..T-1 and
each count u = 0..U of labels emitted so far. Two arcs leave a node: blank, to
(t+1, u), and the next label y[u+1], to (t, u+1). Every alignment starts at (0, 0) and
ends with the blank that leaves (T-1, U).

Shapes: B utterances, T encoder frames, U labels, V classes with blank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from espnet_kd.lattice.logits import Logits
from espnet_kd.lattice.masks import check_lengths, length_mask


class Nodes(NamedTuple):
    """N nodes of a batch of lattices, each (N,) int64: b, t and u."""

    utterance: Tensor
    frame: Tensor
    row: Tensor

    @classmethod
    def where(cls, mask: Tensor) -> Nodes:
        """The nodes where ``mask`` (B, T, U+1) is true, in the order of frames."""
        return cls(*mask.nonzero(as_tuple=True))

    def take(self, index: Tensor | slice) -> Nodes:
        """Some of the nodes."""
        return Nodes(*(x[index] for x in self))

    def later(self, shift: int) -> Nodes:
        """The same rows, ``shift`` frames later."""
        return Nodes(self.utterance, self.frame + shift, self.row)

    @property
    def total(self) -> int:
        """N."""
        return len(self.utterance)


class Layout(NamedTuple):
    """Where the lattices of a batch have nodes, and which label leaves them."""

    labels: Tensor  # (B, U+1) int64; blank where no label leaves the row
    nodes: Tensor  # (B, T, U+1) bool; the node belongs to its utterance
    emits: Tensor  # (B, T, U+1) bool; a label arc leaves it, u < U_b
    frames: Tensor  # (B,) int64; T_b
    symbols: Tensor  # (B,) int64; U_b

    def within(self, ranges: Tensor | None) -> Layout:
        """The same lattices with the nodes of a band only.

        Args:
            ranges: (B, T, S) rows u that exist at each frame, anything in the padding;
                None: all.

        Raises:
            ValueError: the shape does not fit, or a row is not one of the lattice's.
        """
        if ranges is None:
            return self
        batch, frames, rows = self.nodes.shape
        if ranges.dim() != 3 or ranges.shape[:2] != (batch, frames):
            raise ValueError(
                f"ranges: shape {tuple(ranges.shape)}, expected (B, T, S) = "
                f"({batch}, {frames}, S)"
            )
        in_time = length_mask(self.frames, frames).unsqueeze(2)
        ranges = ranges.to(self.nodes.device).long().masked_fill(~in_time, 0)
        if ranges.numel() and not 0 <= int(ranges.min()) <= int(ranges.max()) < rows:
            raise ValueError(f"ranges: has rows outside 0..{rows - 1}")
        band = torch.zeros_like(self.nodes).scatter(2, ranges, True)
        return self._replace(nodes=self.nodes & band)

    def arc_classes(self, nodes: Nodes, blank: int) -> Tensor:
        """Classes of the two arcs that leave each node: (N, 2), label and blank.

        Where no label arc leaves a node, the label's class is blank.
        """
        labels = self.labels[nodes.utterance, nodes.row]
        return torch.stack([labels, torch.full_like(labels, blank)], dim=1)


def make_layout(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    blank: int = 0,
) -> Layout:
    """Check a batch of lattices and mark its nodes.

    Args:
        logits: (B, T, U+1, V).
        labels: (B, U) ids; anything past ``label_lengths``, for example -1.
            A label equal to ``blank`` is accepted, but has no meaning.
        logit_lengths: (B,) encoder frames.
        label_lengths: (B,) labels.
        blank: class of blank.

    Raises:
        ValueError: a shape, a length, a label or ``blank`` does not fit ``logits``.
    """
    if logits.dim() != 4:
        raise ValueError(
            f"logits: shape {tuple(logits.shape)}, expected (B, T, U+1, V)"
        )
    batch, frames, rows, classes = logits.shape
    if labels.shape != (batch, rows - 1):
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} does not fit logits of shape "
            f"{tuple(logits.shape)}, expected (B, U) = ({batch}, {rows - 1})"
        )
    if not 0 <= blank < classes:
        raise ValueError(f"blank: {blank} is not one of the {classes} classes")
    device = logits.device
    num_frames = check_lengths("logit_lengths", logit_lengths, batch, frames).to(device)
    num_labels = check_lengths("label_lengths", label_lengths, batch, rows - 1).to(
        device
    )
    row_emits = length_mask(num_labels, rows)
    labels = torch.nn.functional.pad(labels.to(device).long(), (0, 1), value=blank)
    labels = labels.masked_fill(~row_emits, blank)
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(
            f"labels: ids must be in 0..{classes - 1}, the classes of logits; found "
            f"{int(labels.min())}..{int(labels.max())}"
        )
    in_time = length_mask(num_frames, frames).unsqueeze(2)
    nodes = in_time & length_mask(num_labels + 1, rows).unsqueeze(1)
    emits = in_time & row_emits.unsqueeze(1)
    return Layout(labels, nodes, emits, num_frames, num_labels)
