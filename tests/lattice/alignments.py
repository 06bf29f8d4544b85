"""Every alignment of small lattices, one by one: the reference of the backends.

A lattice is given by its arc scores, (T, U+1) for blank and for label; an arc of score
-inf does not exist. From node (t, u) blank leads to (t+1, u) and a label to (t, u+1),
in the modified topology to (t+1, u+1); an alignment leads from (0, 0) to (T, U).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TOPOLOGIES = ("regular", "modified")


class Alignment(NamedTuple):
    score: float
    nodes: tuple[tuple[int, int], ...]
    emits: tuple[bool, ...]  # for each node: left by its label

    @property
    def rows(self) -> list[int]:
        return [u for _, u in self.nodes]


def alignments(
    blank: Tensor, label: Tensor, frames: int, symbols: int, topology: str
) -> list[Alignment]:
    """All alignments of one utterance; blank, label (T, U+1)."""
    arcs = (blank.tolist(), label.tolist())

    def walk(t: int, u: int) -> Iterator[tuple[float, list]]:
        if (t, u) == (frames, symbols):
            yield 0.0, []
        if t == frames:
            return
        for emits in (False, True):
            score = arcs[emits][t][u]
            if score == -math.inf or (emits and u == symbols):
                continue
            next_t = t if emits and topology == "regular" else t + 1
            for rest, steps in walk(next_t, u + emits):
                yield score + rest, [(t, u, emits), *steps]

    return [
        Alignment(score, tuple((t, u) for t, u, _ in path), tuple(e for *_, e in path))
        for score, path in walk(0, 0)
    ]


def posteriors(paths: list[Alignment]) -> tuple[float, list[float]]:
    """log of the sum over alignments, and the share of each of them."""
    if not paths:
        return -math.inf, []
    best = max(path.score for path in paths)
    total = best + math.log(math.fsum(math.exp(p.score - best) for p in paths))
    return total, [math.exp(path.score - total) for path in paths]


def uses(paths: list[Alignment], frames: int, rows: int) -> Tensor:
    """(2, T, U+1): how often an alignment leaves a node by blank or by label."""
    use = torch.zeros(2, frames, rows, dtype=torch.float64)
    for path, share in zip(paths, posteriors(paths)[1], strict=True):
        for (t, u), emits in zip(path.nodes, path.emits, strict=True):
            use[int(emits), t, u] += share
    return use


class Lattices(NamedTuple):
    """A ragged batch of arc scores, the arguments of the backends."""

    blank: Tensor  # (B, T, U+1) float64, -inf where there is no arc
    label: Tensor
    frames: Tensor
    symbols: Tensor

    def listed(self, topology: str) -> list[list[Alignment]]:
        """All alignments of each utterance."""
        sizes = zip(self.frames.tolist(), self.symbols.tolist(), strict=True)
        return [
            alignments(self.blank[b], self.label[b], *size, topology)
            for b, size in enumerate(sizes)
        ]


def random_lattices(
    seed: int,
    frames: list[int],
    symbols: list[int],
    scale: float = 2.0,
    missing: float = 0.0,
    levels: int | None = None,
) -> Lattices:
    """Utterances of the given sizes.

    Args:
        scale: of the scores, which are normal.
        missing: probability that an arc is removed.
        levels: scores are integers in 0..levels-1, so that many alignments tie.
    """
    generator = torch.Generator().manual_seed(seed)
    frames, symbols = torch.tensor(frames), torch.tensor(symbols)
    shape = (2, len(frames), int(frames.max()), int(symbols.max()) + 1)
    scores = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if levels is not None:
        scores = torch.randint(levels, shape, generator=generator).double()
    gone = torch.rand(shape, generator=generator) < missing
    scores = scores.masked_fill(gone, -math.inf)
    in_time = torch.arange(shape[2]).view(1, -1, 1) < frames.view(-1, 1, 1)
    row = torch.arange(shape[3])
    blank = scores[0].masked_fill(
        ~(in_time & (row <= symbols.view(-1, 1, 1))), -math.inf
    )
    label = scores[1].masked_fill(
        ~(in_time & (row < symbols.view(-1, 1, 1))), -math.inf
    )
    return Lattices(blank, label, frames, symbols)


def in_band(lattices: Lattices, ranges: Tensor) -> Lattices:
    """Without the arcs that leave nodes outside the rows ``ranges`` (B, T, S)."""
    band = torch.zeros_like(lattices.blank, dtype=torch.bool).scatter(2, ranges, True)
    blank, label = (x.masked_fill(~band, -math.inf) for x in lattices[:2])
    return lattices._replace(blank=blank, label=label)


def all_sizes(frames: int, symbols: int, topology: str) -> dict[str, list[int]]:
    """Sizes of a batch with every (T_b, U_b) up to (T, U) that has an alignment."""
    sizes = [
        (t, u)
        for t in range(1, frames + 1)
        for u in range(symbols + 1)
        if topology == "regular" or u <= t
    ]
    return {"frames": [t for t, _ in sizes], "symbols": [u for _, u in sizes]}
