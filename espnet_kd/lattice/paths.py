"""Alignments as paths: the n best, random ones, the nodes that they visit.

k2 has neither exact n-best alignments nor random ones (its `random_paths` draws the
same paths each time), so both are torch's with either backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.lattice import diagonals
from espnet_kd.lattice.diagonals import BLANK, LABEL
from espnet_kd.lattice.masks import length_mask
from espnet_kd.lattice.nodes import Layout


def nbest_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    n: int,
    topology: str = "regular",
) -> tuple[Tensor, Tensor]:
    """Rows of the n best alignments, best first, exactly.

    The first is that of `viterbi_rows` of a backend.

    Each node keeps its n best ways, each with the row and the rank it came from.

    Args: as `torch_backend.forward_backward`; ``n`` >= 1.

    Returns:
        rows (B, n, D) int64, as `viterbi_rows`; scores (B, n). Where an utterance has
        fewer than n alignments, the best one is repeated with score -inf.
    """
    blank, label = diagonals.by_diagonal(blank, label, frames, symbols, topology)
    ways = diagonals.ways(blank, label).unsqueeze(-1)
    steps, batch, _, rows, _ = ways.shape
    scores = ways.new_full((batch, rows + 1, n), -torch.inf)
    scores[:, 1, 0] = 0
    rank = torch.empty(steps, batch, rows, n, dtype=torch.long, device=blank.device)
    for arcs, order in zip(ways.unbind(0), rank.unbind(0)):
        by_blank = scores[:, 1:] + arcs[:, BLANK]
        by_label = scores[:, :-1] + arcs[:, LABEL]
        # stable, because a tie goes to blank as in `viterbi_rows`
        best, index = torch.cat([by_blank, by_label], dim=2).sort(
            dim=2, descending=True, stable=True
        )
        scores[:, 1:] = best[..., :n]
        order.copy_(index[..., :n])
    row = torch.arange(rows, device=blank.device).unsqueeze(1)
    origin = (row - rank // n) * n + rank % n
    last = symbols.unsqueeze(1) * n + torch.arange(n, device=blank.device)
    found = diagonals.walk_back(origin.flatten(2), last) // n
    scores = scores[:, 1:].flatten(1).gather(1, last)
    return torch.where(scores.unsqueeze(2) > -torch.inf, found, found[:, :1]), scores


def sample_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    n: int,
    topology: str = "regular",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rows of n alignments drawn from their posterior, independently.

    Drawn from the end backwards: the arc into a node is the label's with the
    probability that the node was reached by it.

    Args: as `torch_backend.forward_backward`; ``n`` >= 1; ``generator`` on the device
    of ``blank``.

    Returns:
        (B, n, D) int64, as `viterbi_rows` of a backend.
    """
    ways = diagonals.ways(
        *diagonals.by_diagonal(blank, label, frames, symbols, topology)
    )
    _, came = diagonals.sweep(ways, torch.zeros_like(symbols), torch.logaddexp)
    by_label = diagonals.shares(came)[:, :, LABEL]
    like = {"dtype": blank.dtype, "device": blank.device}
    dice = torch.rand(len(ways), len(blank), n, generator=generator, **like)
    row = symbols.unsqueeze(1).expand(-1, n)
    rows = []
    for share, die in zip(reversed(by_label.unbind(0)), reversed(dice.unbind(0))):
        row = row - (die < share.gather(1, row)).long()
        rows.append(row)
    return torch.stack(rows[::-1], dim=2)


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
