"""Log-probabilities of classes: softened, collapsed, complemented."""

import torch
from torch import Tensor

from espnet_kd.lattice.masks import LOG_ZERO, upcast


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
    """Keep some classes and sum all others into the rest, in log space.

    The rest is a sum over the other classes: 1 - sum of the kept ones would lose it to
    rounding exactly where a peaky model makes it small.

    Args:
        log_probs: (..., V).
        ids: (..., K) classes to keep; a repeated one counts once.

    Returns:
        (..., K+1), the rest last; about `LOG_ZERO` where no class is left.
    """
    rest = log_probs.scatter(-1, ids, LOG_ZERO).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest], dim=-1)


def log_complement(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)); -inf where rounding took the mass x to one or above."""
    x = log_mass.clamp(max=0)
    near_one = x > -0.693
    return torch.where(near_one, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
