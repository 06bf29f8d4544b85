"""Bootstrap over utterances: confidence of a WER and of the difference of two WERs.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP 2004. An utterance is drawn with all its errors and words, so
dependent errors within an utterance stay together.
"""

from __future__ import annotations

import numpy as np

CHUNK_DRAWS = 4_000_000  # utterances drawn at once, 32 MB of indices
_TIE = 1e-12  # two rates closer than this are equal up to rounding


def resample_indices(
    utterances: int, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(resamples, utterances) int64 rows of utterances drawn with replacement."""
    return rng.integers(0, utterances, size=(resamples, utterances))


def rates_of(
    errors: np.ndarray, lengths: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Error rates of S systems on R resampled sets: ratio of sums, not mean of ratios.

    Args:
        errors: (S, N) errors of each system in each utterance.
        lengths: (N,) reference units of each utterance.
        indices: (R, N) the utterances of each resample.

    Returns:
        (S, R) rates; NaN if a resample has no reference units.
    """
    resamples, utterances = indices.shape
    # Draws of each utterance: one matrix product then covers all systems.
    offsets = np.arange(resamples)[:, None] * utterances
    drawn = np.bincount(
        (indices + offsets).ravel(), minlength=resamples * utterances
    ).reshape(resamples, utterances)
    with np.errstate(invalid="ignore", divide="ignore"):
        words = drawn @ lengths
        return np.where(words > 0, errors @ drawn.T / words, np.nan)


def bootstrap_rates(
    errors: np.ndarray, lengths: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> np.ndarray:
    """(S, resamples) error rates; all systems use the same resamples (paired).

    Shapes as in `rates_of`. Memory stays bounded for any number of utterances.
    """
    rng = np.random.default_rng(seed)
    errors, lengths = errors.astype(np.float64), lengths.astype(np.float64)
    step = max(1, CHUNK_DRAWS // len(lengths))
    chunks = [
        rates_of(
            errors,
            lengths,
            resample_indices(len(lengths), min(step, resamples - start), rng),
        )
        for start in range(0, resamples, step)
    ]
    return np.concatenate(chunks, axis=1)


def interval(rates: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of (R,) bootstrapped rates."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def paired_p_value(rates: np.ndarray, baseline: np.ndarray, observed: float) -> float:
    """Two-sided p-value of a difference of two error rates.

    One minus the "probability of improvement" of Bisani and Ney (2004), doubled: the
    share of resamples in which the difference is zero or does not have the sign
    observed on the whole set. One is added to both counts, so that p is never 0: with R
    resamples, p is at least 2 / (R + 1).

    Args:
        rates, baseline: (R,) rates of the two systems on the same resamples.
        observed: rate minus baseline rate on the whole set.
    """
    if observed == 0:
        return 1.0
    difference = (rates - baseline) * np.sign(observed)
    # In this form a resample without words (NaN) counts against the difference.
    against = int((~(difference > _TIE)).sum())
    return min(1.0, 2 * (against + 1) / (len(rates) + 1))
