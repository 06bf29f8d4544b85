"""KD on every node of the transducer lattice (Panchapagesan 2020)."""

from torch import Tensor

from espnet_kd.lattice.factored import Logits
from espnet_kd.lattice.nodes import make_grid
from espnet_kd.losses.nodes import reduce_sums
from espnet_kd.losses.transducer import (
    LatticeTerm,
    as_teacher,
    check_teacher_shape,
    lattice_losses,
)


def full_lattice_kd(
    student: Logits,
    teacher: Logits,
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
        student: (B, T, U+1, V) logits, dense or factored.
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
    lattice = (labels, logit_lengths, label_lengths, blank)
    return _all_nodes_kd("full", student, teacher, lattice, temperature, reduction)


def collapsed_lattice_kd(
    student: Logits,
    teacher: Logits,
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
    lattice = (labels, logit_lengths, label_lengths, blank)
    return _all_nodes_kd("collapsed", student, teacher, lattice, temperature, reduction)


def _all_nodes_kd(
    classes: str,
    student: Logits,
    teacher: Logits,
    lattice: tuple,
    temperature: float,
    reduction: str,
) -> Tensor:
    check_teacher_shape(student, teacher, same_frames=True)
    grid = make_grid(student, *lattice)
    term = LatticeTerm(as_teacher(teacher), grid.nodes, classes, temperature)
    _, (sums,) = lattice_losses(
        student, grid, [term], blank=lattice[-1], with_transducer=False
    )
    return reduce_sums(sums, grid.nodes, reduction)
