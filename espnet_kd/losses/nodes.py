"""Where student and teacher are compared: choosing nodes, and summing over them.

A loss is which nodes count (a mask), the divergence of each, and the reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.lattice.masks import check_lengths, length_mask
from espnet_kd.lattice.nodes import Layout

REDUCTIONS = ("batch", "node", "none")


def reduce_nodes(losses: Tensor, valid: Tensor, reduction: str = "batch") -> Tensor:
    """Sum node losses.

    Args:
        losses: (B, ...) one value per node.
        valid: (B, ...) bool, nodes that count.
        reduction: "batch" sum over nodes / B, "node" mean over the valid nodes of the
            batch (0 where there is none), "none" (B,) sums over nodes.

    Raises:
        ValueError: the reduction is unknown.
    """
    return reduce_sums(
        losses.masked_fill(~valid, 0).flatten(1).sum(1), valid, reduction
    )


def reduce_sums(sums: Tensor, valid: Tensor, reduction: str) -> Tensor:
    """`reduce_nodes` of sums over the nodes of each utterance, (B,).

    Raises:
        ValueError: the reduction is unknown.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: {reduction!r} is not one of {REDUCTIONS}")
    if reduction == "none":
        return sums
    return sums.sum() / (
        len(sums) if reduction == "batch" else valid.sum().clamp(min=1)
    )


def check_path(path: Tensor, batch: int) -> None:
    """ValueError unless ``path`` is (B, N, 2)."""
    if path.dim() != 3 or path.shape[0] != batch or path.shape[2] != 2:
        raise ValueError(
            f"path: shape {tuple(path.shape)}, expected (B, N, 2) = ({batch}, N, 2)"
        )


def path_mask(
    path: Tensor,
    path_lengths: Tensor,
    *,
    shift: int = 0,
    student_lengths: Tensor | None = None,
) -> Tensor:
    """Nodes of a path that count once the student is read ``shift`` frames later.

    Args:
        path: (B, N, 2) int64 (t, u).
        path_lengths: (B,) nodes, at most N.
        shift: in encoder frames.
        student_lengths: (B,) frames of the student; None drops no node at the end.

    Returns:
        (B, N) bool: inside the path, and 0 <= t + shift < student_lengths.
    """
    path_lengths = check_lengths("path_lengths", path_lengths, *path.shape[:2])
    valid = length_mask(path_lengths.to(path.device), path.shape[1])
    t = path[..., 0] + shift
    valid = valid & (t >= 0)
    if student_lengths is not None:
        valid = valid & (t < student_lengths.to(path.device).unsqueeze(1))
    return valid


def path_nodes(
    path: Tensor, path_lengths: Tensor, layout: Layout, shift: int = 0
) -> Tensor:
    """Nodes (B, T, U+1) bool at which the student is read for a path.

    Args:
        path: (B, N, 2) int64 (t, u).
        path_lengths: (B,) nodes.
        layout: of the student's lattices.
        shift: in encoder frames.

    Raises:
        ValueError: shapes or lengths do not fit, a node has a row outside the lattice.
    """
    batch, frames, rows = layout.nodes.shape
    check_path(path, batch)
    valid = path_mask(path, path_lengths, shift=shift, student_lengths=layout.frames)
    path = path.to(layout.nodes.device).long()
    utterance, step = valid.nonzero(as_tuple=True)
    frame, row = path[utterance, step].unbind(-1)
    if ((row < 0) | (row >= rows) | (frame < 0)).any():
        raise ValueError(
            f"path: has nodes outside a lattice of {frames} frames and {rows} rows: "
            "was it made from other audio or another token list?"
        )
    nodes = torch.zeros_like(layout.nodes)
    nodes[utterance, frame + shift, row] = True
    return nodes


def later(x: Tensor | None, shift: int, frames: int) -> Tensor | None:
    """Values at (t, u) moved to (t + shift, u), zero where nothing is moved to.

    (B, T', U+1) -> (B, frames, U+1).
    """
    if x is None or (shift == 0 and x.shape[1] == frames):
        return x
    moved = x.new_zeros(len(x), frames, x.shape[2])
    start, end = max(0, shift), min(frames, x.shape[1] + shift)
    if start < end:
        moved[:, start:end] = x[:, start - shift : end - shift]
    return moved
