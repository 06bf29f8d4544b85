"""A teacher on the transducer lattices of one batch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from espnet_kd.distill.signals import KnownPath
from espnet_kd.lattice.algebra import Arcs, arc_ids, make_arcs
from espnet_kd.lattice.factored import Nodes, nodes_of
from espnet_kd.lattice.nodes import Grid
from espnet_kd.lattice.pruning import prune_ranges
from espnet_kd.losses.teachers import Teacher


class LatticeTeacher:
    """A teacher on the labels of a batch, which keeps what several losses ask.

    Args:
        teacher: answers about nodes.
        grid: the lattices that it shares with the student: the student's labels, and
            frames that both have.
        blank: class of blank.
        path: the alignment to compare, where the source knows one.
    """

    def __init__(
        self, teacher: Teacher, grid: Grid, blank: int, path: KnownPath | None = None
    ) -> None:
        self.grid = grid
        self.blank = blank
        self.log_probs = teacher.log_probs
        self.topk = teacher.topk
        self.teacher = teacher
        self.path = path

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        """{label, blank, all others} of nodes."""
        if temperature != 1:
            return self.teacher.collapsed(nodes, ids, temperature)
        return self._log_probs[self._index[tuple(nodes)]]

    @cached_property
    def _nodes(self) -> Nodes:
        return nodes_of(self.grid.nodes)

    @cached_property
    def _index(self) -> Tensor:
        """(B, T, U+1), the place of each node in `_log_probs`."""
        index = torch.zeros_like(self.grid.nodes, dtype=torch.long)
        index[tuple(self._nodes)] = torch.arange(self._nodes.total, device=index.device)
        return index

    @cached_property
    def _log_probs(self) -> Tensor:
        ids = arc_ids(self.grid, self._nodes, self.blank)
        return self.teacher.collapsed(self._nodes, ids, 1.0)

    @cached_property
    def arcs(self) -> Arcs:
        """Alignments of the labels by the teacher."""
        return make_arcs(self.grid, self._nodes, self._log_probs)

    @cached_property
    def occupancies(self) -> Tensor:
        """(B, T, U+1, 2) posterior of leaving a node by blank, by its label."""
        _, *use = self.arcs.forward_backward()
        return torch.stack(use, dim=-1).to(self._log_probs.dtype)

    def ranges(self, width: int) -> Tensor:
        """The ``width`` rows of each frame that its alignments use most."""
        frames, symbols = self.grid.frames, self.grid.symbols
        return prune_ranges(self.occupancies, frames, symbols, width)
