"""At what resolution student and teacher are compared: KL of a node, by classes.

    full            all V classes
    collapsed       {next label, blank, rest} of a lattice node
    top-k           K stored classes, renormalised, or with one tail class

`full_kl` and `topk_kl` take (..., V) logits of the student and give one KL value a
node, (...). `transducer` does so for nodes of a lattice, whose logits it does not hold.
KL is sum_k q_k (log q_k - log p_k) from the teacher q to the student p. The teacher is
detached. Where a temperature divides logits the KL is multiplied by its square, which
keeps the size of the gradient (Hinton 2015). Everything is float32, or float64 where
the student is.
"""

import torch
from torch import Tensor

from espnet_kd.lattice.nodes import LOG_ZERO, check_same_shape, upcast

TAILS = ("renormalize", "bucket")


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) over the last dimension; 0 log 0 = 0, and finite for any p.

    Args:
        log_q: (..., K) log-probabilities of the teacher, -inf allowed; detached.
        log_p: (..., K) log-probabilities of the student.
    """
    log_q = log_q.detach().clamp(min=LOG_ZERO)
    return (log_q.exp() * (log_q - log_p.clamp(min=LOG_ZERO))).sum(-1)


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax of ``logits / temperature``.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not positive")
    logits = upcast(logits)
    if temperature != 1:
        # the largest becomes 0: a low temperature would overflow it, not the others
        logits = (logits - logits.detach().amax(-1, keepdim=True)) / temperature
    return logits.log_softmax(-1)


def collapse(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Keep some classes and sum all others into one, in log space.

    The rest is a sum over the other classes: 1 - sum of the kept ones would lose it to
    rounding exactly where a peaky model makes it small.

    Args:
        log_probs: (..., V).
        ids: (..., K) classes to keep; a class named twice is left out of the rest once.

    Returns:
        (..., K+1), the rest last; about `LOG_ZERO` where no class is left.
    """
    rest = log_probs.scatter(-1, ids, LOG_ZERO).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest], dim=-1)


def full_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL over all classes, times temperature**2. (..., V) logits twice -> (...)."""
    check_same_shape("teacher", teacher, "student", student)
    loss = kl(soften(teacher.detach(), temperature), soften(student, temperature))
    return loss * temperature**2


def log_complement(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)); -inf where rounding took the mass x to one or above."""
    x = log_mass.clamp(max=0)
    near_one = x > -0.693
    return torch.where(near_one, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def topk_kl(
    student: Tensor,
    topk_log_probs: Tensor,
    topk_ids: Tensor,
    tail: str = "renormalize",
    temperature: float = 1.0,
) -> Tensor:
    """KL from stored top-k targets to the student's softmax over all V classes.

    "renormalize" (Z. Yang 2019) divides the K probabilities by their sum, so that the
    teacher says nothing of other classes and the student is taught to leave them.
    "bucket" adds one class for all others on both sides; the teacher's mass there is
    what the K leave of 1. Stored values are rounded (fp16: a relative 2**-11 of the
    log-probability), and so is their sum: below 1 the difference counts as tail, as it
    cannot be told from it; above 1 the K are divided by their sum and the tail is
    empty, so that the targets are a distribution and the KL is never negative. Where
    all V classes are stored there is no tail, and the values are divided by their sum.

    Args:
        student: (..., V) logits.
        topk_log_probs: (..., K); -inf entries have no effect under "renormalize", and
            are classes of no mass under "bucket".
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
            f"topk_ids: {topk_ids.shape[-1]} classes a node, the student has "
            f"{student.shape[-1]}"
        )
    log_p = collapse(soften(student, temperature), topk_ids.long())
    loss = topk_divergence(topk_log_probs, log_p, tail, student.shape[-1])
    return loss * temperature**2


def topk_divergence(
    log_q: Tensor, log_p: Tensor, tail: str, num_classes: int
) -> Tensor:
    """KL from stored top-k targets, as `topk_kl` has it.

    Args:
        log_q: (..., K) as stored; detached.
        log_p: (..., K+1) log-probabilities of the student, all other classes last.
        tail: "renormalize" or "bucket".
        num_classes: V.
    """
    log_q = upcast(log_q.detach())
    log_mass = log_q.logsumexp(-1, keepdim=True).clamp(min=LOG_ZERO)
    if tail == "renormalize" or log_q.shape[-1] == num_classes:
        return kl(log_q - log_mass, log_p[..., :-1])
    # rounding may have taken the sum above one
    log_q = torch.cat([log_q - log_mass.clamp(min=0), log_complement(log_mass)], dim=-1)
    return kl(log_q, log_p)
