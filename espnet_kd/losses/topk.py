"""The k best classes of a teacher, and a student's log-probabilities beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_kd.lattice.kept_classes import first_occurrences
from espnet_kd.lattice.masks import LOG_ZERO, upcast
from espnet_kd.losses.log_space import log_complement

TAILS = ("renormalize", "bucket")


@torch.no_grad()
def topk_targets(
    log_probs: Tensor, k: int, *, keep: Sequence[int] = (0,)
) -> tuple[Tensor, Tensor]:
    """The k most likely classes of a teacher, with some classes always among them.

    Blank must be kept where the student has one. Targets that lack it give it no mass,
    or only its part of the tail, and the student would learn to avoid it there.

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


def without_repeats(log_q: Tensor, log_p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of fewer than K classes, padded by repeating some: each counts once.

    Args:
        log_q: (N, K).
        log_p: (N, K+1) log-probabilities of the student, the rest last.
        ids: (N, K) classes; of those that occur twice the first counts.
    """
    repeats = ~first_occurrences(ids)
    if not repeats.any():
        return log_q, log_p
    kept = log_p[:, :-1].masked_fill(repeats, LOG_ZERO)
    log_p = torch.cat([kept, log_p[:, -1:]], dim=1)
    return log_q.masked_fill(repeats, -torch.inf), log_p


def with_tail(
    log_q: Tensor, log_p: Tensor, tail: str, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Top-k targets and the student as distributions over the same classes.

    "renormalize" (Z. Yang 2019) divides the K probabilities by their sum: the teacher
    gives all other classes no mass. "bucket" adds one class for them on both sides; the
    teacher's mass there is what the K leave of 1. Stored values are rounded (fp16: a
    relative 2**-11 of the log-probability), and so is their sum: below 1 the difference
    counts as tail, from which it cannot be distinguished; above 1 the K are divided by
    their sum and the tail is empty, so that the targets are a distribution. Where all V
    classes are stored there is no tail, and the values are divided by their sum.

    Args:
        log_q: (..., K) as stored; detached. -inf entries have no effect under
            "renormalize", and are classes of no mass under "bucket".
        log_p: (..., K+1) log-probabilities of the student, the rest last.
        tail: "renormalize" or "bucket".
        num_classes: V.

    Returns:
        log_q and log_p, (..., K+1), or (..., K) where there is no tail.
    """
    log_q = upcast(log_q.detach())
    log_mass = log_q.logsumexp(-1, keepdim=True).clamp(min=LOG_ZERO)
    if log_q.shape[-1] == num_classes and (log_q > -torch.inf).all():
        return log_q - log_mass, log_p[..., :-1]
    if tail == "renormalize":
        no_mass = torch.full_like(log_mass, LOG_ZERO)
        return torch.cat([log_q - log_mass, no_mass], dim=-1), log_p
    # rounding may have taken the sum above one, or left a rest where all are stored
    rest = log_complement(log_mass).masked_fill(
        log_p[..., -1:] < LOG_ZERO / 2, LOG_ZERO
    )
    return torch.cat([log_q - log_mass.clamp(min=0), rest], dim=-1), log_p
