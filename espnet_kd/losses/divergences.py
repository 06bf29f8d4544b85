"""How far the student's distribution p is from the teacher's q, by name.

    kl           KL(q || p)                                    the default
    reverse_kl   KL(p || q)
    jsd          1/2 KL(q || m) + 1/2 KL(p || m),  m = (p + q) / 2

A divergence is a formula over the last dimension of log-probabilities. It is used for
every kind of nodes and every class set. A new one is a class here and a line in
`DIVERGENCES`; its gradient comes from autograd.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_kd.lattice.masks import LOG_ZERO


@dataclass(frozen=True)
class Divergence(ABC):
    """A formula for the distance from a student p to a teacher q, which is detached."""

    @property
    def is_infinite_off_support(self) -> bool:
        """Whether it is infinite where q is 0 and p is not."""
        return False

    @abstractmethod
    def formula(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Two (..., K) log-probabilities, finite and >= `LOG_ZERO` -> (...).

        The K classes are disjoint and complete; some may have no mass.
        """

    def __call__(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """The formula, with log(0) at `LOG_ZERO`, so that 0 log 0 = 0.

        Args:
            log_q: (..., K) log-probabilities of the teacher, -inf allowed; detached.
            log_p: (..., K) log-probabilities of the student.
        """
        log_q = log_q.detach().clamp(min=LOG_ZERO)
        return self.formula(log_q, log_p.clamp(min=LOG_ZERO))

    def gradient(self, log_q: Tensor, logits: Tensor) -> Tensor:
        """Gradient (..., V) of the value by the student's logits, p = softmax(logits).

        By autograd; a divergence with a cheaper formula overrides it. Neither argument
        is changed.
        """
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            value = self(log_q, logits.log_softmax(-1)).sum()
            return torch.autograd.grad(value, logits)[0]


class KL(Divergence):
    """KL(q || p) = sum_k q_k (log q_k - log p_k), from teacher to student."""

    def formula(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        return (log_q.exp() * (log_q - log_p)).sum(-1)

    def gradient(self, log_q: Tensor, logits: Tensor) -> Tensor:
        return logits.softmax(-1).sub_(log_q.exp())


class ReverseKL(Divergence):
    """KL(p || q) = sum_k p_k (log p_k - log q_k), from student to teacher.

    It is infinite where q is 0 and p is not. A teacher's softmax has no zeros, but
    rounding may leave none of the mass of its rest; that counts as one unit of
    rounding.
    """

    @property
    def is_infinite_off_support(self) -> bool:
        return True

    def formula(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        rounding = math.log(torch.finfo(log_q.dtype).eps)
        log_q = log_q.masked_fill(log_q <= LOG_ZERO, rounding)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class JSD(Divergence):
    """Jensen-Shannon: KL(q || m) / 2 + KL(p || m) / 2 with m = (p + q) / 2.

    Symmetric in p and q, at most log 2, and finite even without mass in a class (Lin
    1991).
    """

    def formula(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_q, log_p) - math.log(2)
        from_q = log_q.exp() * (log_q - log_m)
        from_p = log_p.exp() * (log_p - log_m)
        return (from_q + from_p).sum(-1) / 2


DIVERGENCES: dict[str, Divergence] = {
    "kl": KL(),
    "reverse_kl": ReverseKL(),
    "jsd": JSD(),
}


def divergence_of(divergence: str | Divergence) -> Divergence:
    """The divergence of this name; a `Divergence` is returned unchanged.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"divergence: {divergence!r} is not one of {tuple(DIVERGENCES)}; pass one "
            "of these names, or a Divergence"
        )
    return DIVERGENCES[divergence]
