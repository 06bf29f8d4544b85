"""A teacher on the transducer lattices of one batch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from espnet_kd.distill.signals import KnownLattice, KnownPath, known
from espnet_kd.lattice import Lattices
from espnet_kd.lattice.nodes import Layout, Nodes
from espnet_kd.losses.teachers import Teacher


class LatticeTeacher:
    """A teacher on the labels of a batch, which caches what several losses need.

    Args:
        answer: what is known of nodes; None where only the path is known.
        layout: of the lattices that it shares with the student: the student's labels,
            and frames that both have.
        blank: class of blank.
        path: the alignment to compare, if the source has one.

    Attributes:
        layout: of the nodes that the teacher knows.
    """

    def __init__(
        self,
        answer: KnownLattice | None,
        layout: Layout,
        blank: int,
        path: KnownPath | None = None,
    ) -> None:
        self.answer = answer
        self.layout = layout if answer is None else layout.within(answer.ranges)
        self.blank = blank
        self.path = path

    @property
    def teacher(self) -> Teacher:
        """Of the lattice.

        Raises:
            ValueError: it is not known.
        """
        return known(self.answer, "lattice").teacher

    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor:
        """Of all classes, (N, V)."""
        return self.teacher.log_probs(nodes, temperature)

    def topk(
        self, nodes: Nodes, k: int, blank: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The k best classes and their log-probabilities, (N, k) twice."""
        return self.teacher.topk(nodes, k, blank, temperature)

    def total_score(self) -> Tensor | None:
        """log P(labels) (B,); None where the lattice is not known."""
        return None if self.answer is None else self.lattices.total_score()

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        """{label, blank, rest} of nodes."""
        if temperature != 1:
            return self.teacher.collapsed(nodes, ids, temperature)
        return self._log_probs[self._index[tuple(nodes)]]

    @cached_property
    def _nodes(self) -> Nodes:
        return Nodes.where(self.layout.nodes)

    @cached_property
    def _index(self) -> Tensor:
        """(B, T, U+1), the place of each node in `_log_probs`."""
        index = torch.zeros_like(self.layout.nodes, dtype=torch.long)
        index[tuple(self._nodes)] = torch.arange(self._nodes.total, device=index.device)
        return index

    @cached_property
    def _log_probs(self) -> Tensor:
        ids = self.layout.arc_classes(self._nodes, self.blank)
        return self.teacher.collapsed(self._nodes, ids, 1.0)

    @cached_property
    def lattices(self) -> Lattices:
        """Alignments of the labels by the teacher."""
        return Lattices.from_nodes(self.layout, self._nodes, self._log_probs)

    @cached_property
    def occupancies(self) -> Tensor:
        """(B, T, U+1, 2) posterior of leaving a node by blank or by its label."""
        return self.lattices.occupancy()
