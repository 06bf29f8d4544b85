"""Several teachers as one."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_kd.lattice.masks import LOG_ZERO, check_same_shape
from espnet_kd.losses.log_space import soften


@torch.no_grad()
def ensemble_logits(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float = 1.0
) -> Tensor:
    """Logits of the weighted mean of the teachers' softened posteriors.

        softmax(z / temperature) = sum_m w_m softmax(z_m / temperature)

    as in Z. Yang 2019, so that a loss with this temperature treats an ensemble as one
    teacher.

    Args:
        logits: (..., V) of each teacher, all of one shape.
        weights: one per teacher, >= 0; divided by their sum.
        temperature: that of the loss.

    Returns:
        (..., V) float32 or float64, finite; a single teacher's logits unchanged.

    Raises:
        ValueError: no teacher, different shapes, or weights that are not one per
            teacher, negative, NaN, or all zero.
    """
    if not logits or len(logits) != len(weights):
        raise ValueError(
            f"weights: {len(weights)} weights for {len(logits)} teachers, expected one "
            "for each, and at least one teacher"
        )
    if not all(w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ValueError(
            f"weights: {list(weights)} must be >= 0 and finite, with a sum above 0"
        )
    for m, other in enumerate(logits[1:], start=1):
        check_same_shape(f"logits[{m}]", other, "logits[0]", logits[0])
    if len(logits) == 1:
        return logits[0]
    total = sum(weights)
    shares = (
        soften(z, temperature) + math.log(w / total)
        for z, w in zip(logits, weights, strict=True)
        if w > 0
    )
    mean = functools.reduce(torch.logaddexp, shares) * temperature
    return mean.clamp(min=LOG_ZERO)
