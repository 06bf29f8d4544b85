"""KD on every node of the transducer lattice (Panchapagesan 2020)."""

import torch
from torch import Tensor

from espnet_kd.lattice.nodes import check_same_shape, make_grid, mask_nodes
from espnet_kd.losses.classes import collapsed_kl, full_kl
from espnet_kd.losses.nodes import reduce_nodes


def full_lattice_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    temperature: float = 1.0,
    reduction: str = "batch",
) -> Tensor:
    """KL over all classes at all nodes, t < T_b and u <= U_b.

        sum_{t,u} sum_k q(k|t,u) log [q(k|t,u) / p(k|t,u)]

    Args:
        student: (B, T, U+1, V) logits.
        teacher: same shape; detached.
        labels: (B, U) ids, anything in the padding.
        logit_lengths: (B,) encoder frames.
        label_lengths: (B,) labels.
        blank: class of blank.
        temperature: divides both logits; the loss is multiplied by its square.
        reduction: "batch" sum over nodes / B, "node" mean over valid nodes, "none" (B,)
            sums over nodes.

    Raises:
        ValueError: shapes, lengths or labels do not fit, an unknown reduction.
    """
    check_same_shape("teacher", teacher, "student", student)
    nodes = make_grid(student, labels, logit_lengths, label_lengths, blank).nodes
    losses = full_kl(
        mask_nodes(student, nodes), mask_nodes(teacher, nodes), temperature
    )
    return reduce_nodes(losses, nodes, reduction)


def collapsed_lattice_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    temperature: float = 1.0,
    reduction: str = "batch",
) -> Tensor:
    """KL over {next label, blank, rest} at all nodes, {blank, rest} in the row u = U_b.

        sum_{t,u} sum_l q(l|t,u) log [q(l|t,u) / p(l|t,u)]

    with q(rest) = 1 - q(label) - q(blank), summed in log space.

    Arguments, reductions and errors as `full_lattice_kd`.
    """
    check_same_shape("teacher", teacher, "student", student)
    grid = make_grid(student, labels, logit_lengths, label_lengths, blank)
    ids = torch.stack([grid.labels, torch.full_like(grid.labels, blank)], dim=-1)
    losses = collapsed_kl(
        mask_nodes(student, grid.nodes),
        mask_nodes(teacher, grid.nodes),
        ids.unsqueeze(1).expand(*student.shape[:3], 2),
        torch.stack([grid.emits, torch.ones_like(grid.emits)], dim=-1),
        temperature,
    )
    return reduce_nodes(losses, grid.nodes, reduction)
