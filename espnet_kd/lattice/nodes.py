"""Nodes of a transducer lattice: shapes, masks and the scores of their arcs.

The lattice of one utterance has a node (t, u) for each encoder frame t = 0..T-1 and
each count u = 0..U of labels emitted so far. Two arcs leave a node: blank, to
(t+1, u), and the next label y[u+1], to (t, u+1). Every alignment starts at (0, 0) and
ends with the blank that leaves (T-1, U).

Shapes: B utterances, T encoder frames, U labels, V classes with blank.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from espnet_kd.lattice.factored import Logits

# Stands for log(0) where -inf would turn into NaN (inf - inf, 0 * inf).
LOG_ZERO = -1e30


class Grid(NamedTuple):
    """A batch of lattices: where it has nodes, and which label leaves them."""

    labels: Tensor  # (B, U+1) int64; blank where no label leaves the row
    nodes: Tensor  # (B, T, U+1) bool; the node belongs to its utterance
    emits: Tensor  # (B, T, U+1) bool; a label arc leaves it, u < U_b
    frames: Tensor  # (B,) int64; T_b
    symbols: Tensor  # (B,) int64; U_b


def upcast(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32.

    No operation of this package is on autocast's list of lowered ones, so that this
    cast is all that keeps a loss in full precision under autocast.
    """
    return x if x.dtype == torch.float64 else x.float()


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError that names both arguments and both shapes where they differ."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name}: shape {tuple(x.shape)} differs from the shape "
            f"{tuple(other.shape)} of {other_name}"
        )


def check_lengths(name: str, lengths: Tensor, batch: int, longest: int) -> Tensor:
    """Lengths as int64, refused unless integers of shape (B,) in 0..longest."""
    if lengths.dtype.is_floating_point or lengths.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"{name}: shape {tuple(lengths.shape)}, expected ({batch},), "
            "one length an utterance"
        )
    if batch:
        low, high = (int(x) for x in torch.stack(torch.aminmax(lengths)))
        if low < 0 or high > longest:
            raise ValueError(
                f"{name}: values {low}..{high} do not fit a tensor with {longest} steps"
            )
    return lengths.long()


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """(B,) -> (B, longest) bool, true at the first ``lengths[b]`` positions."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(-1)


def mask_nodes(x: Tensor, valid: Tensor) -> Tensor:
    """Zero the classes of the nodes that do not count.

    Done to the input, not to the result: whatever stands in the padding (NaN, Inf)
    then meets neither the value nor the gradient.

    Args:
        x: (..., V).
        valid: (...) bool.
    """
    if valid.all():
        return x
    return x.masked_fill(~valid.unsqueeze(-1), 0)


def make_grid(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    blank: int = 0,
) -> Grid:
    """Check a batch of lattices and mark its nodes.

    Args:
        logits: (B, T, U+1, V).
        labels: (B, U) ids; those past ``label_lengths`` may hold anything (say -1).
            A label equal to ``blank`` is not refused, but has no meaning.
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
            f"labels: ids must lie in 0..{classes - 1}, the classes of logits; found "
            f"{int(labels.min())}..{int(labels.max())}"
        )
    in_time = length_mask(num_frames, frames).unsqueeze(2)
    nodes = in_time & length_mask(num_labels + 1, rows).unsqueeze(1)
    emits = in_time & row_emits.unsqueeze(1)
    return Grid(labels, nodes, emits, num_frames, num_labels)
