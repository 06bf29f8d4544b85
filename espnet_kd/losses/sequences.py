"""Sequence-level KD: a teacher's hypotheses.

Either their weights w_k in the loss sum_k w_k (-log p(hypothesis k | audio)), by the
student's own loss, or the probabilities themselves (`full_sum_kd`).
"""

import torch
from torch import Tensor

from espnet_kd.lattice.masks import (
    LOG_ZERO,
    check_lengths,
    check_same_shape,
    length_mask,
    upcast,
)
from espnet_kd.losses.divergences import DIVERGENCES
from espnet_kd.losses.nodes import reduce_nodes


def error_weights(wer: Tensor | float, beta: float) -> Tensor:
    """exp(-beta * WER) of each hypothesis (Kim 2019).

    Args:
        wer: word error rate of the hypothesis against the reference, any shape, as a
            fraction (0.1 is 10 %; above 1 is possible).
        beta: >= 0; 0 gives every hypothesis the weight 1.

    Returns:
        Shape of ``wer``, float32 or float64.

    Raises:
        ValueError: a WER is negative or NaN, or beta is.
    """
    wer = upcast(torch.as_tensor(wer))
    if not beta >= 0:
        raise ValueError(f"beta: {beta} is not a number >= 0")
    if not (wer >= 0).all():
        raise ValueError(
            "wer: has a negative or NaN value; drop the hypotheses that have no "
            "reference, or give them another weight"
        )
    if beta == 0:  # also where an empty reference made the WER infinite
        return torch.ones_like(wer)
    return torch.exp(-beta * wer)


@torch.no_grad()
def posterior_weights(scores: Tensor, scale: float, lengths: Tensor) -> Tensor:
    """softmax(scale * score) over the hypotheses of each utterance.

    Args:
        scores: (B, K) log-scores of the teacher, anything in the padding.
        scale: 0 is uniform, 1 the teacher's posterior restricted to its n-best list.
        lengths: (B,) hypotheses of each utterance.

    Returns:
        (B, K), zero from ``lengths`` on; rows sum to 1 (to 0 where there is none).

    Raises:
        ValueError: ``scores`` is not (B, K), or ``lengths`` do not fit.
    """
    if scores.dim() != 2:
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (B, K)")
    lengths = check_lengths("lengths", lengths, *scores.shape).to(scores.device)
    absent = ~length_mask(lengths, scores.shape[1])
    if not scores.numel():
        return upcast(scores)
    scores = upcast(scores).masked_fill(absent, -torch.inf)
    # the best becomes 0, so that no scale makes two of them infinite
    below = (scores - scores.amax(1, keepdim=True)).clamp(min=LOG_ZERO)
    weights = (scale * below).masked_fill(absent, -torch.inf).softmax(-1)
    return weights.masked_fill(absent, 0)


def full_sum_kd(
    student_scores: Tensor,
    teacher_scores: Tensor,
    lengths: Tensor,
    *,
    distance: str = "kl",
    temperature: float = 1.0,
    reduction: str = "batch",
) -> Tensor:
    """Match log P(y | audio) of the hypotheses y of an n-best list.

    The scores are full sums over alignments, so that student and teacher need neither
    equal frames nor equal alignments (Zeineldeen et al. 2023).

    `kl`, `reverse_kl`, `jsd`: temperature**2 times the divergence between q and p, the
    posteriors of teacher and student restricted to the list, softmax over K of score /
    temperature. `l1`, `l2`: sum over K of |d| or d**2, d the difference of the two
    scores.

    Args:
        student_scores: (B, K) log P(y) by the student.
        teacher_scores: (B, K) by the teacher, which gets no gradient.
        lengths: (B,) hypotheses of each utterance; the padding may hold anything. A
            hypothesis that one side cannot produce (-inf) is left out.
        distance: "l1", "l2", or the name of a divergence.
        temperature: of a divergence; for "l1" and "l2" 1.
        reduction: "none" gives (B,); "batch" their sum / B; "node" for a divergence the
            same (an utterance is a node), else the mean over hypotheses.

    Raises:
        ValueError: a shape, a length or an option does not fit.
    """
    _check_full_sum(student_scores, teacher_scores, distance, temperature)
    batch, most = student_scores.shape
    lengths = check_lengths("lengths", lengths, batch, most).to(student_scores.device)
    student, teacher = upcast(student_scores), upcast(teacher_scores.detach())
    valid = length_mask(lengths, most)
    valid = valid & (student != -torch.inf) & (teacher != -torch.inf)
    # Masked first, so that padding does not affect the gradient either.
    student, teacher = (x.masked_fill(~valid, 0) for x in (student, teacher))
    if distance in DIVERGENCES:
        log_q, log_p = (
            (x / temperature).masked_fill(~valid, LOG_ZERO).log_softmax(1)
            for x in (teacher, student)
        )
        terms = temperature**2 * DIVERGENCES[distance](log_q, log_p).unsqueeze(1)
        return reduce_nodes(terms, torch.ones_like(terms, dtype=torch.bool), reduction)
    difference = student - teacher
    terms = difference.abs() if distance == "l1" else difference.square()
    return reduce_nodes(terms, valid, reduction)


def _check_full_sum(
    student: Tensor, teacher: Tensor, distance: str, temperature: float
) -> None:
    if student.dim() != 2:
        raise ValueError(
            f"student_scores: shape {tuple(student.shape)}, expected (B, K)"
        )
    check_same_shape("teacher_scores", teacher, "student_scores", student)
    distances = (*DIVERGENCES, "l1", "l2")
    if distance not in distances:
        raise ValueError(f"distance: {distance!r} is not one of {distances}")
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be above 0")
    if distance not in DIVERGENCES and temperature != 1:
        raise ValueError(
            f"temperature: {temperature} is only for distances between posteriors, "
            f"such as 'kl'; {distance!r} compares the log-probabilities themselves"
        )
