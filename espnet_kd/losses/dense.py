"""KL at nodes with dense logits (..., V), one value per node.

For your own losses: `reduce_nodes(full_kl(student, teacher), valid)`.
"""

from torch import Tensor

from espnet_kd.lattice.masks import check_same_shape
from espnet_kd.losses.divergences import DIVERGENCES
from espnet_kd.losses.log_space import collapse, soften
from espnet_kd.losses.topk import TAILS, with_tail


def full_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL over all classes, times temperature**2. Two (..., V) logits -> (...)."""
    check_same_shape("teacher", teacher, "student", student)
    log_q, log_p = (soften(z, temperature) for z in (teacher.detach(), student))
    return DIVERGENCES["kl"](log_q, log_p) * temperature**2


def topk_kl(
    student: Tensor,
    topk_log_probs: Tensor,
    topk_ids: Tensor,
    tail: str = "renormalize",
    temperature: float = 1.0,
) -> Tensor:
    """KL from stored top-k targets to the student's softmax over all V classes.

    Args:
        student: (..., V) logits.
        topk_log_probs: (..., K) as stored (`topk.with_tail`).
        topk_ids: (..., K) distinct classes.
        tail: "renormalize" or "bucket".
        temperature: divides the student's logits only, the targets carry their own; the
            loss is multiplied by its square.

    Returns:
        (...).

    Raises:
        ValueError: an unknown ``tail``, or shapes that do not fit.
    """
    if tail not in TAILS:
        raise ValueError(f"tail: {tail!r} is not one of {TAILS}")
    check_same_shape("topk_ids", topk_ids, "topk_log_probs", topk_log_probs)
    if topk_ids.shape[:-1] != student.shape[:-1] or not topk_ids.shape[-1]:
        raise ValueError(
            f"topk_ids: shape {tuple(topk_ids.shape)} does not fit student logits of "
            f"shape {tuple(student.shape)}, expected (..., K) beside (..., V)"
        )
    if topk_ids.shape[-1] > student.shape[-1]:
        raise ValueError(
            f"topk_ids: {topk_ids.shape[-1]} classes per node, but the student has "
            f"{student.shape[-1]}"
        )
    log_p = collapse(soften(student, temperature), topk_ids.long())
    pair = with_tail(topk_log_probs, log_p, tail, student.shape[-1])
    return DIVERGENCES["kl"](*pair) * temperature**2
