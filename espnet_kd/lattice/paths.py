"""Alignments of labels: the best one, the n best, and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.lattice.algebra import Arcs, arcs_of
from espnet_kd.lattice.factored import Logits
from espnet_kd.lattice.nodes import length_mask


@torch.no_grad()
def best_path(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best alignment of ``labels`` (Viterbi) as the nodes that it visits.

    It visits N_b = T_b + U_b nodes, from (0, 0) to (T_b-1, U_b); in the modified
    topology N_b = T_b, one a frame. Of equally good alignments "torch", the default
    here, takes the one that emits every label earliest; "k2" does so too on a CPU, but
    holds arc scores in float32 and is slower. No gradient.

    Arguments and errors as `total_score`.

    Returns:
        path (B, N, 2) int64 (t, u), padded with the last node of each utterance, so
        that it can index; path_lengths (B,) int64; score (B,), the log-probability of
        the alignment.
    """
    lattice = (labels, logit_lengths, label_lengths, blank, ranges, topology, backend)
    return best_of(arcs_of(logits, *lattice))


@torch.no_grad()
def nbest_paths(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    n: int,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The n best alignments of ``labels``, exactly. No gradient.

    Arguments and errors as `total_score`; ``n`` >= 1.

    Returns:
        paths (B, n, N, 2) as `best_path`, best first; path_lengths (B,); scores (B, n).
        Where an utterance has fewer alignments its best one is repeated, with the
        score -inf.
    """
    lattice = (labels, logit_lengths, label_lengths, blank, ranges, topology, backend)
    return nbest_of(arcs_of(logits, *lattice), n)


@torch.no_grad()
def sample_paths(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    n: int,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    backend: str | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """n alignments of ``labels``, drawn independently from their posterior.

    No gradient. Arguments and errors as `total_score`; ``n`` >= 1.

    Args:
        generator: on the device of ``logits``; None: torch's own.

    Returns:
        paths (B, n, N, 2) as `best_path`; path_lengths (B,); scores (B, n).
    """
    lattice = (labels, logit_lengths, label_lengths, blank, ranges, topology, backend)
    return sample_of(arcs_of(logits, *lattice), n, generator)


def best_of(arcs: Arcs) -> tuple[Tensor, Tensor, Tensor]:
    """`best_path` of lattices that were read already."""
    grid = arcs.grid
    rows = arcs.decoder.viterbi_rows(
        *arcs.masked(), grid.frames, grid.symbols, arcs.topology
    )
    path, lengths, score = _trace(arcs, rows.unsqueeze(1))
    return path.squeeze(1), lengths, score.squeeze(1)


def nbest_of(arcs: Arcs, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """`nbest_paths` of lattices that were read already."""
    _check_number(n)
    grid = arcs.grid
    rows, scores = arcs.decoder.nbest_rows(
        *arcs.masked(), grid.frames, grid.symbols, n, arcs.topology
    )
    paths, lengths, _ = _trace(arcs, rows)
    return paths, lengths, scores.to(arcs.blank.dtype)


def sample_of(
    arcs: Arcs, n: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_paths` of lattices that were read already."""
    _check_number(n)
    grid = arcs.grid
    rows = arcs.decoder.sample_rows(
        *arcs.masked(), grid.frames, grid.symbols, n, arcs.topology, generator
    )
    return _trace(arcs, rows)


def _check_number(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: {n} paths; ask for at least 1")


def _trace(arcs: Arcs, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Paths from the rows that they visit.

    Args:
        rows: (B, n, N) row u of each node; n paths an utterance.

    Returns:
        paths (B, n, N, 2), padded with the last node; path_lengths (B,); scores (B, n).
    """
    grid, is_regular = arcs.grid, arcs.topology == "regular"
    lengths = grid.frames + grid.symbols if is_regular else grid.frames
    rows = rows[..., : int(lengths.max())]
    step = torch.arange(rows.shape[2], device=rows.device)
    last = (lengths - 1).view(-1, 1, 1)
    rows = rows.gather(2, torch.minimum(step, last).expand_as(rows))
    # the last arc of an alignment ends in the row U_b
    end = grid.symbols.view(-1, 1, 1)
    follow = torch.cat([rows[..., 1:], rows[..., -1:]], dim=2)
    moves = torch.where(step < last, follow, end) > rows
    step = torch.minimum(step, last)
    frame = step - rows if is_regular else step.expand_as(rows)
    utterance = torch.arange(len(rows), device=rows.device).view(-1, 1, 1)
    blank, label = (x[utterance, frame, rows] for x in arcs.masked())
    inside = length_mask(lengths, rows.shape[2]).unsqueeze(1)
    scores = torch.where(moves, label, blank).masked_fill(~inside, 0).sum(2)
    return torch.stack([frame, rows], -1), lengths, scores.to(arcs.blank.dtype)
