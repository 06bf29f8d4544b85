"""Alignments as paths: the nodes that they visit, and their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.lattice.masks import length_mask
from espnet_kd.lattice.nodes import Layout


def trace(
    rows: Tensor, layout: Layout, topology: str, blank: Tensor, label: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Paths from the rows that they visit.

    Args:
        rows: (B, n, N) row u of each node; n paths per utterance.
        layout: of the lattices.
        topology: "regular" or "modified".
        blank: (B, T, U+1) scores of the arcs.
        label: same.

    Returns:
        paths (B, n, N, 2), padded with the last node; path_lengths (B,); scores (B, n).
    """
    is_regular = topology == "regular"
    lengths = layout.frames + layout.symbols if is_regular else layout.frames
    rows = rows[..., : int(lengths.max())]
    step = torch.arange(rows.shape[2], device=rows.device)
    last = (lengths - 1).view(-1, 1, 1)
    rows = rows.gather(2, torch.minimum(step, last).expand_as(rows))
    # the last arc of an alignment ends in the row U_b
    end = layout.symbols.view(-1, 1, 1)
    follow = torch.cat([rows[..., 1:], rows[..., -1:]], dim=2)
    moves = torch.where(step < last, follow, end) > rows
    step = torch.minimum(step, last)
    frame = step - rows if is_regular else step.expand_as(rows)
    utterance = torch.arange(len(rows), device=rows.device).view(-1, 1, 1)
    by_blank, by_label = (x[utterance, frame, rows] for x in (blank, label))
    inside = length_mask(lengths, rows.shape[2]).unsqueeze(1)
    scores = torch.where(moves, by_label, by_blank).masked_fill(~inside, 0).sum(2)
    return torch.stack([frame, rows], -1), lengths, scores
