"""KD on the nodes of one alignment (X. Yang 2022)."""

from torch import Tensor

from espnet_kd.lattice.nodes import check_lengths
from espnet_kd.losses.classes import full_kl
from espnet_kd.losses.nodes import check_path, gather_path, path_mask, reduce_nodes


def path_kd(
    student: Tensor,
    teacher: Tensor,
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
        student: (B, T_student, U+1, V) logits.
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
    if (
        student.dim() != 4
        or teacher.dim() != 4
        or student[:, 0].shape != teacher[:, 0].shape
    ):
        raise ValueError(
            f"teacher: shape {tuple(teacher.shape)} does not fit the shape "
            f"{tuple(student.shape)} of student, expected (B, T, U+1, V) with only T "
            "different"
        )
    batch, frames = student.shape[:2]
    check_path(path, batch)
    if student_lengths is None:
        student_lengths = path_lengths.new_full((batch,), frames)
    student_lengths = check_lengths("student_lengths", student_lengths, batch, frames)
    valid = path_mask(path, path_lengths, shift=shift, student_lengths=student_lengths)
    losses = full_kl(
        gather_path(student, path, shift, valid=valid),
        gather_path(teacher, path, valid=valid),
        temperature,
    )
    return reduce_nodes(losses, valid, reduction)
