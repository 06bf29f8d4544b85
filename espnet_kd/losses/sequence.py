"""Weights of a teacher's hypotheses in sequence-level KD.

The loss is sum_k w_k (-log p(hypothesis k | audio)), by the student's own loss.
"""

import torch
from torch import Tensor

from espnet_kd.lattice.nodes import LOG_ZERO, check_lengths, length_mask, upcast


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
        scores: (B, K) log-scores by the teacher, anything in the padding.
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
