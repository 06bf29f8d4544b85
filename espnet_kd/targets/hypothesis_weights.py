"""`error_weights` and `posterior_weights` of `espnet_kd.losses`, on plain numbers.

A KD set is text, so its filters and weights do not need torch. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from espnet_kd.targets.hypotheses import posteriors

LEAST = -1e30  # replaces a difference of -inf, which times a scale of 0 is NaN


def error_weights(wer: Sequence[float], beta: float) -> list[float]:
    """exp(-beta * WER) of each hypothesis (Kim 2019); 1 if beta is 0.

    Raises:
        ValueError: a WER is negative or NaN, or beta is.
    """
    errors = np.asarray(wer, dtype=np.float64)
    if not beta >= 0:
        raise ValueError(f"beta: {beta} is not a number >= 0")
    if not (errors >= 0).all():
        raise ValueError(
            f"wer: {errors.tolist()} has a negative or NaN value; drop hypotheses "
            "without a reference, or give them another weight"
        )
    if beta == 0:  # even if an empty reference made the WER infinite
        return [1.0] * len(errors)
    return np.exp(-beta * errors).tolist()


def posterior_weights(scores: Sequence[float], scale: float) -> list[float]:
    """softmax(scale * score) over the K hypotheses of an utterance.

    Args:
        scores: log-scores by the teacher.
        scale: 0 is uniform, 1 the teacher's posterior restricted to its n-best list.
    """
    if not len(scores):
        return []
    # The best becomes 0, so that at no scale two of them are infinite.
    below = np.asarray(scores, dtype=np.float64) - max(scores)
    return posteriors(scale * np.maximum(below, LEAST))
