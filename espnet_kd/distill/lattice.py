"""`kd_conf`'s losses on the transducer lattices of one batch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from espnet_kd.config.losses import BandConf, LatticeConf, PathConf
from espnet_kd.lattice.algebra import Arcs, arc_ids, make_arcs, restrict
from espnet_kd.lattice.factored import Nodes, nodes_of
from espnet_kd.lattice.nodes import Grid
from espnet_kd.lattice.paths import best_of, nbest_of, sample_of
from espnet_kd.lattice.pruning import prune_ranges
from espnet_kd.losses import LatticeTerm, OnlineTeacher
from espnet_kd.losses.transducer import later, path_nodes


class LatticeTeacher:
    """A teacher on the labels of a batch, which keeps what several losses ask.

    Args:
        teacher: answers about nodes.
        grid: the lattices that it shares with the student: the student's labels, and
            frames that both have.
        blank: class of blank.
    """

    def __init__(self, teacher: OnlineTeacher, grid: Grid, blank: int) -> None:
        self.grid = grid
        self.blank = blank
        self.log_probs = teacher.log_probs
        self.topk = teacher.topk
        self.teacher = teacher

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

    def paths(self, loss: PathConf) -> tuple[Tensor, Tensor, Tensor]:
        """Paths (B, P, N, 2), their nodes (B,) and weights (B, P), which sum to 1."""
        if loss.paths == "best":
            path, lengths, score = best_of(self.arcs)
            return path.unsqueeze(1), lengths, torch.ones_like(score).unsqueeze(1)
        if loss.paths == "nbest":
            paths, lengths, scores = nbest_of(self.arcs, loss.num_paths)
            return paths, lengths, scores.softmax(1)
        paths, lengths, scores = sample_of(self.arcs, loss.num_paths)
        return paths, lengths, torch.full_like(scores, 1 / loss.num_paths)


def lattice_term(
    loss: LatticeConf | BandConf | PathConf,
    teacher: LatticeTeacher,
    ranges: Tensor | None = None,
) -> LatticeTerm:
    """A loss of `kd_conf` on the nodes that it names.

    The nodes of a loss with a window are those of the teacher, else of the student.

    Args:
        loss: at `lattice`, `band` or `path`, with numbers for schedules.
        teacher: on the labels of the batch.
        ranges: (B, T, S) band of a pruned student; None: that of the teacher.
    """
    grid, weights = teacher.grid, None
    if loss.nodes == "path":
        shift = loss.shift if loss.window == 1 else 0
        nodes, weights = _path_weights(*teacher.paths(loss), grid, shift)
    else:
        own = of_teacher = grid.nodes
        if loss.nodes == "band" and ranges is not None:
            own = restrict(grid, ranges).nodes
        elif loss.nodes == "band":
            of_teacher = restrict(grid, teacher.ranges(loss.width)).nodes
        frames = own.size(1)
        nodes = own & later(of_teacher, loss.shift, frames)
        if loss.weighting == "occupancy":
            weights = later(teacher.occupancies.sum(-1), loss.shift, frames)
    return LatticeTerm(
        teacher=teacher,
        nodes=nodes,
        classes=loss.classes,
        temperature=loss.temperature,
        weights=weights,
        shift=loss.shift,
        k=loss.k,
        tail=loss.tail,
    )


def _path_weights(
    paths: Tensor, lengths: Tensor, weights: Tensor, grid: Grid, shift: int
) -> tuple[Tensor, Tensor | None]:
    """Nodes of several paths, and how much of the paths' weight passes each."""
    if paths.size(1) == 1:
        return path_nodes(paths[:, 0], lengths, grid, shift), None
    total = weights.new_zeros(grid.nodes.shape)
    for path, weight in zip(paths.unbind(1), weights.unbind(1)):
        total += path_nodes(path, lengths, grid, shift) * weight.view(-1, 1, 1)
    return total > 0, total
