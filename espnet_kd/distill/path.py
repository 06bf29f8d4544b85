"""KD on paths through the transducer lattice (X. Yang 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.config.losses import PathConf
from espnet_kd.distill.lattice import make_term
from espnet_kd.distill.lattice_teacher import LatticeTeacher
from espnet_kd.distill.node_kinds import term_of
from espnet_kd.lattice.nodes import Layout
from espnet_kd.losses import LatticeTerm
from espnet_kd.losses.nodes import path_nodes


@term_of("path")
def path_term(
    loss: PathConf, teacher: LatticeTeacher, ranges: Tensor | None
) -> LatticeTerm:
    """A loss on the nodes of one or several paths.

    With a window the nodes are those of the teacher, else those of the student.
    """
    shift = loss.shift if loss.window == 1 else 0
    if loss.paths == "best" and teacher.path is not None:
        path, lengths, knowing = teacher.path
        nodes = path_nodes(path, lengths, teacher.layout, shift)
        return make_term(loss, knowing, nodes, None)
    nodes, weights = _path_weights(*_paths(loss, teacher), teacher.layout, shift)
    return make_term(loss, teacher, nodes, weights)


def _paths(loss: PathConf, teacher: LatticeTeacher) -> tuple[Tensor, Tensor, Tensor]:
    """Paths (B, P, N, 2), their nodes (B,) and weights (B, P), which sum to 1."""
    if loss.paths == "best":
        path, lengths, score = teacher.lattices.best_path()
        return path.unsqueeze(1), lengths, torch.ones_like(score).unsqueeze(1)
    if loss.paths == "nbest":
        paths, lengths, scores = teacher.lattices.nbest(loss.num_paths)
        return paths, lengths, scores.softmax(1)
    paths, lengths, scores = teacher.lattices.sample(loss.num_paths)
    return paths, lengths, torch.full_like(scores, 1 / loss.num_paths)


def _path_weights(
    paths: Tensor, lengths: Tensor, weights: Tensor, layout: Layout, shift: int
) -> tuple[Tensor, Tensor | None]:
    """Nodes of several paths, and how much of the paths' weight passes each."""
    if paths.size(1) == 1:
        return path_nodes(paths[:, 0], lengths, layout, shift), None
    total = weights.new_zeros(layout.nodes.shape)
    for path, weight in zip(paths.unbind(1), weights.unbind(1)):
        total += path_nodes(path, lengths, layout, shift) * weight.view(-1, 1, 1)
    return total > 0, total
