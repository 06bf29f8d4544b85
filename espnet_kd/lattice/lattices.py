"""A batch of transducer lattices as one object: ask it for scores, paths and bands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_kd.lattice import torch_backend
from espnet_kd.lattice.backends import check_alignable, choose_backend
from espnet_kd.lattice.bands import prune_ranges
from espnet_kd.lattice.kept_classes import class_log_probs
from espnet_kd.lattice.logits import Logits
from espnet_kd.lattice.masks import LOG_ZERO
from espnet_kd.lattice.nodes import Layout, Nodes, make_layout
from espnet_kd.lattice.paths import nbest_rows, sample_rows, trace
from espnet_kd.lattice.reading import read_nodes

# Smaller arc posteriors become zero: products with denormal numbers are several times
# slower on a CPU, and float32 loses the difference anyway.
UNUSED = 1e-10


@dataclass(frozen=True, eq=False)
class Lattices:
    """Lattices whose arcs were read, ready for sums and maxima over alignments.

    `Lattices.read` reads the joint network once, however many methods are called later.
    Only `total_score` has a gradient, where the arcs were read under autograd.

    Attributes:
        layout: nodes and labels; its nodes are those of the band, if there is one.
        blank: (B, T, U+1) log-probabilities; `LOG_ZERO` where there is no node.
        label: the same for the next label; its row u = U is not used.
        topology: "regular", or "modified", where each frame emits one symbol.
        backend: "k2", "torch", or None for k2 where it is installed, else torch.
    """

    layout: Layout
    blank: Tensor
    label: Tensor
    topology: str = "regular"
    backend: str | None = None

    @classmethod
    def read(
        cls,
        logits: Logits,
        labels: Tensor,
        logit_lengths: Tensor,
        label_lengths: Tensor,
        *,
        blank: int = 0,
        ranges: Tensor | None = None,
        topology: str = "regular",
        backend: str | None = None,
    ) -> Lattices:
        """Read the arcs of all nodes.

        Args:
            logits: (B, T, U+1, V), raw, dense or factored.
            labels: (B, U) ids, anything in the padding; blank is not a label.
            logit_lengths: (B,) encoder frames, at least 1.
            label_lengths: (B,) labels.
            blank: class of blank.
            ranges: (B, T, S) int64, rows u that exist at each frame (`band`); None: all
                of them.
            topology: "regular", or "modified", where each frame emits one symbol, blank
                or a label.
            backend: "k2", "torch", or None for k2 where it is installed, else torch.

        Raises:
            ValueError: shapes, lengths or labels do not fit, more labels than frames in
                the modified topology, an unknown topology or backend.
            ImportError: "k2" is forced and cannot be imported.
        """
        choose_backend(backend, logits.device)  # a wrong name is refused before reading
        layout = make_layout(logits, labels, logit_lengths, label_lengths, blank)
        layout = layout.within(ranges)
        nodes = Nodes.where(layout.nodes)
        ids = layout.arc_classes(nodes, blank)
        read = read_nodes(logits, nodes, ids, (1.0,))
        log_probs = class_log_probs(read.scores, read.rest[:, 0], ids, slice(None))
        return cls.from_nodes(layout, nodes, log_probs, topology, backend)

    @classmethod
    def from_nodes(
        cls,
        layout: Layout,
        nodes: Nodes,
        log_probs: Tensor,
        topology: str = "regular",
        backend: str | None = None,
    ) -> Lattices:
        """Lattices from what was read at the nodes of ``layout``.

        Args:
            nodes: all nodes of the layout, in any order.
            log_probs: (N, 2 or more); of the label and of blank.

        Raises:
            As `read`, for the topology and the backend.
        """
        choose_backend(backend, log_probs.device)
        check_alignable(layout.frames, layout.symbols, topology)
        empty = log_probs.new_full(layout.nodes.shape, LOG_ZERO)
        label, blank = (
            empty.index_put(tuple(nodes), log_probs[:, i].clamp(min=LOG_ZERO))
            for i in range(2)
        )
        return cls(layout, blank, label, topology, backend)

    # ---- sums over alignments

    def total_score(self) -> Tensor:
        """log P(labels | audio), summed over all alignments (Graves 2012).

        The sums are done in float64 on either backend. Differentiable once.

        Returns:
            (B,) float32, float64 for float64 logits.
        """
        return _TotalScore.apply(self.blank, self.label, self)

    @torch.no_grad()
    def occupancy(self) -> Tensor:
        """Posterior that an alignment leaves a node by blank or by its label.

        Returns:
            (B, T, U+1, 2): [..., 0] blank, [..., 1] label; zero where there is no arc.
            The labels of each row u < U_b sum to 1, the blanks of an utterance to T_b
            (to T_b - U_b in the modified topology).
        """
        _, *use = self._forward_backward
        return torch.stack(use, dim=-1).to(self.blank.dtype)

    @torch.no_grad()
    def band(self, width: int) -> Tensor:
        """The ``width`` rows of each frame that alignments use most: (B, T, S) ranges.

        `prune_ranges` of the occupancy.
        """
        return prune_ranges(
            self.occupancy(),
            self.layout.frames,
            self.layout.symbols,
            width,
            topology=self.topology,
            backend=self.backend,
        )

    # ---- single alignments, without a gradient

    @torch.no_grad()
    def best_path(self) -> tuple[Tensor, Tensor, Tensor]:
        """Best alignment (Viterbi) as the nodes that it visits.

        It visits N_b = T_b + U_b nodes, from (0, 0) to (T_b-1, U_b); in the modified
        topology N_b = T_b, one per frame. Of equally good alignments "torch", the
        default here, takes the one that emits every label earliest; "k2" does so too on
        a CPU, but holds arc scores in float32 and is slower.

        Returns:
            path (B, N, 2) int64 (t, u), padded with the last node of each utterance, so
            that it can index; path_lengths (B,) int64; score (B,), the log-probability
            of the alignment.
        """
        layout = self.layout
        rows = self._decoder.viterbi_rows(
            *self._arcs(), layout.frames, layout.symbols, self.topology
        )
        path, lengths, score = self._trace(rows.unsqueeze(1))
        return path.squeeze(1), lengths, score.squeeze(1)

    @torch.no_grad()
    def nbest(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The n >= 1 best alignments, exactly.

        Returns:
            paths (B, n, N, 2) as `best_path`, best first; path_lengths (B,); scores
            (B, n). Where an utterance has fewer alignments its best one is repeated,
            with the score -inf.

        Raises:
            ValueError: n is below 1.
        """
        _check_number(n)
        layout = self.layout
        rows, scores = nbest_rows(
            *self._arcs(), layout.frames, layout.symbols, n, self.topology
        )
        paths, lengths, _ = self._trace(rows)
        return paths, lengths, scores.to(self.blank.dtype)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """n >= 1 alignments, drawn independently from their posterior.

        Args:
            generator: on the device of the lattices; None: torch's own.

        Returns:
            paths (B, n, N, 2) as `best_path`; path_lengths (B,); scores (B, n).

        Raises:
            ValueError: n is below 1.
        """
        _check_number(n)
        layout = self.layout
        rows = sample_rows(
            *self._arcs(), layout.frames, layout.symbols, n, self.topology, generator
        )
        return self._trace(rows)

    # ---- what the methods share

    @cached_property
    def _forward_backward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Total scores (B,); posteriors (B, T, U+1) of blank arcs and of label arcs."""
        module = choose_backend(self.backend, self.blank.device)
        frames, symbols = self.layout.frames, self.layout.symbols
        return module.forward_backward(*self._arcs(), frames, symbols, self.topology)

    @property
    def _decoder(self) -> ModuleType:
        """torch finds best paths faster than k2, and keeps arc scores in float64."""
        if self.backend is None:
            return torch_backend
        return choose_backend(self.backend, self.blank.device)

    def _arcs(self) -> tuple[Tensor, Tensor]:
        """Scores of blank and label in float64, with -inf where there is no arc."""
        emits = self.layout.nodes & self.layout.emits
        return (
            self.blank.detach().double().masked_fill(~self.layout.nodes, -torch.inf),
            self.label.detach().double().masked_fill(~emits, -torch.inf),
        )

    def _trace(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        paths, lengths, scores = trace(rows, self.layout, self.topology, *self._arcs())
        return paths, lengths, scores.to(self.blank.dtype)


class _TotalScore(torch.autograd.Function):
    """The derivative of a total score by an arc's score is the arc's posterior."""

    @staticmethod
    def forward(ctx, blank: Tensor, label: Tensor, lattices: Lattices) -> Tensor:
        score, *use = lattices._forward_backward
        if blank.dtype == torch.float32:
            use = [x.masked_fill(x < UNUSED, 0) for x in use]
        ctx.save_for_backward(*(x.to(blank.dtype) for x in use))
        return score.to(blank.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        gradient = gradient.view(-1, 1, 1)
        return *(gradient * use for use in ctx.saved_tensors), None


def _check_number(n: int) -> None:
    if n < 1:
        raise ValueError(f"n: {n} paths; must be at least 1")
