"""KD from the few classes that matter, on CTC frames or tokens (Z. Yang 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_kd.lattice.nodes import check_lengths, length_mask, mask_nodes, upcast
from espnet_kd.losses.classes import topk_kl
from espnet_kd.losses.nodes import reduce_nodes


def essence_kd(
    student_logits: Tensor,
    topk_log_probs: Tensor,
    topk_ids: Tensor,
    lengths: Tensor,
    *,
    tail: str = "renormalize",
    temperature: float = 1.0,
    reduction: str = "batch",
) -> Tensor:
    """KL from a teacher's top-k classes to the student, at each frame or token.

    Args:
        student_logits: (B, L, V).
        topk_log_probs: (B, L, K) log-probabilities as stored, not renormalised; they
            carry the temperature that they were made with. -inf entries are harmless.
        topk_ids: (B, L, K) distinct classes.
        lengths: (B,) frames or tokens.
        tail: "renormalize" divides the K probabilities by their sum; "bucket" keeps
            them as stored and adds one class with what they leave of 1, nothing where
            rounding took their sum above 1; they are divided by it there
            (`classes.topk_kl`).
        temperature: divides the student's logits only; the loss is multiplied by its
            square.
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
    lengths = check_lengths("lengths", lengths, *student_logits.shape[:2])
    valid = length_mask(lengths.to(student_logits.device), student_logits.shape[1])
    losses = topk_kl(
        mask_nodes(student_logits, valid),
        mask_nodes(topk_log_probs, valid),
        mask_nodes(topk_ids, valid),
        tail,
        temperature,
    )
    return reduce_nodes(losses, valid, reduction)


@torch.no_grad()
def topk_targets(
    log_probs: Tensor, k: int, *, keep: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """The k most likely classes of a teacher, with some classes always among them.

    Blank has to be kept where the student has one: it would take over the targets of
    frames from which it was cut.

    Args:
        log_probs: (..., V).
        k: classes, those in ``keep`` included.
        keep: classes that are always among the k.

    Returns:
        values (..., k), as they are (not renormalised), decreasing, and their ids
        (..., k) int64, distinct.

    Raises:
        ValueError: k is above V or below the number of kept classes, or a kept class is
            not one of the V.
    """
    classes, kept = log_probs.shape[-1], sorted(set(keep))
    if not max(1, len(kept)) <= k <= classes:
        raise ValueError(
            f"k: {k} is not in {max(1, len(kept))}..{classes}: at least the kept "
            f"classes {tuple(kept)}, at most the {classes} classes of log_probs"
        )
    if kept and not 0 <= kept[0] <= kept[-1] < classes:
        raise ValueError(f"keep: {tuple(kept)} are not among the {classes} classes")
    rank = upcast(log_probs).clone()
    rank[..., kept] = torch.inf
    ids = rank.topk(k, dim=-1).indices
    values = log_probs.gather(-1, ids)
    order = upcast(values).argsort(dim=-1, descending=True)
    return values.gather(-1, order), ids.gather(-1, order)
