"""KD from the few classes that matter, on CTC frames or tokens (Z. Yang 2019)."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.lattice.masks import check_same_shape, length_mask
from espnet_kd.losses.classes import TopK
from espnet_kd.losses.divergences import Divergence
from espnet_kd.losses.nodes import reduce_sums
from espnet_kd.losses.steps import StoredSteps, steps_kd


def essence_kd(
    student_logits: Tensor,
    topk_log_probs: Tensor,
    topk_ids: Tensor,
    lengths: Tensor,
    *,
    tail: str = "renormalize",
    temperature: float = 1.0,
    divergence: str | Divergence = "kl",
    reduction: str = "batch",
) -> Tensor:
    """Divergence from a teacher's top-k classes, at each frame or token.

    Args:
        student_logits: (B, L, V).
        topk_log_probs: (B, L, K) log-probabilities as stored, not renormalised; they
            carry the temperature that they were made with. -inf entries are harmless.
        topk_ids: (B, L, K) distinct classes.
        lengths: (B,) frames or tokens.
        tail: "renormalize" divides the K probabilities by their sum; "bucket" keeps
            them as stored and adds one class with the remaining mass; where rounding
            took their sum above 1, they are divided by it and that class is empty
            (`topk.with_tail`).
        temperature: divides the student's logits only; the loss is multiplied by its
            square.
        divergence: "kl", "jsd", or with the tail "bucket" also "reverse_kl", or a
            `Divergence`.
        reduction: "batch" sum over nodes / B, "node" mean over valid nodes, "none" (B,)
            sums over nodes.

    Raises:
        ValueError: shapes or lengths do not fit, an unknown tail or reduction.
    """
    if student_logits.dim() != 3:
        raise ValueError(
            f"student_logits: shape {tuple(student_logits.shape)}, expected (B, L, V)"
        )
    if topk_ids.shape[:2] != student_logits.shape[:2]:
        raise ValueError(
            f"topk_ids: shape {tuple(topk_ids.shape)} does not fit student_logits of "
            f"shape {tuple(student_logits.shape)}, expected (B, L, K)"
        )
    check_same_shape("topk_ids", topk_ids, "topk_log_probs", topk_log_probs)
    kept, classes = topk_ids.shape[2], student_logits.shape[2]
    if not 1 <= kept <= classes:
        raise ValueError(
            f"topk_ids: {kept} classes per node, expected 1 to {classes}, those of "
            "student_logits"
        )
    sums = steps_kd(
        student_logits,
        StoredSteps(topk_log_probs, topk_ids),
        lengths,
        classes=TopK(kept, tail),
        divergence=divergence,
        temperature=temperature,
    )
    valid = length_mask(lengths, student_logits.shape[1])
    return reduce_sums(sums, valid, reduction)
