"""KD on the nodes of one alignment (X. Yang 2022)."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.lattice.factored import Logits
from espnet_kd.lattice.nodes import check_lengths, make_grid
from espnet_kd.losses.nodes import reduce_sums
from espnet_kd.losses.transducer import (
    LatticeTerm,
    as_teacher,
    check_frames,
    check_teacher_shape,
    lattice_losses,
    path_nodes,
)


def path_kd(
    student: Logits,
    teacher: Logits,
    path: Tensor,
    path_lengths: Tensor,
    *,
    shift: int = 0,
    student_lengths: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "batch",
) -> Tensor:
    """KL over all classes at the nodes of a path, the student ``shift`` frames later.

        sum_{(t,u) in path} sum_k q(k|t,u) log [q(k|t,u) / p(k|t+shift,u)]

    A node with t + shift outside the student's frames is dropped, from the value and
    from the count of nodes.

    Args:
        student: (B, T_student, U+1, V) logits, dense or factored.
        teacher: (B, T_teacher, U+1, V) logits, of the same frame rate; detached.
        path: (B, N, 2) int64 (t, u) in the teacher's frames, as `best_path` gives it.
        path_lengths: (B,) nodes.
        shift: in encoder frames; > 0 lets a streaming student emit later.
        student_lengths: (B,) encoder frames of the student. Default: T_student for all.
        temperature: divides both logits; the loss is multiplied by its square.
        reduction: "batch" sum over nodes / B, "node" mean over valid nodes, "none" (B,)
            sums over nodes.

    Raises:
        ValueError: shapes or lengths do not fit, a node outside the teacher's lattice,
            an unknown reduction.
    """
    check_teacher_shape(student, teacher, same_frames=False)
    batch, frames, rows, _ = student.shape
    if student_lengths is None:
        student_lengths = path_lengths.new_full((batch,), frames)
    check_lengths("student_lengths", student_lengths, batch, frames)
    # All classes are compared, so that it does not matter which of them is the label.
    no_labels = path_lengths.new_zeros(batch, rows - 1)
    label_lengths = path_lengths.new_full((batch,), rows - 1)
    grid = make_grid(student, no_labels, student_lengths, label_lengths)
    nodes = path_nodes(path, path_lengths, grid, shift)
    check_frames(teacher, nodes, shift)
    term = LatticeTerm(as_teacher(teacher), nodes, "full", temperature, shift=shift)
    _, (sums,) = lattice_losses(student, grid, [term], with_transducer=False)
    return reduce_sums(sums, nodes, reduction)
