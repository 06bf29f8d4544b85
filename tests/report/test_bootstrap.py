"""The vectorised bootstrap against plain loops over the same resamples."""

import numpy as np
import pytest

from espnet_kd.report import bootstrap
from espnet_kd.report.bootstrap import (
    bootstrap_rates,
    interval,
    paired_p_value,
    rates_of,
    resample_indices,
)


def naive_rates(errors, lengths, indices):
    rates = []
    for row in indices:
        words = sum(float(lengths[i]) for i in row)
        rates.append(sum(float(errors[i]) for i in row) / words)
    return np.array(rates)


def naive_quantile(values, q):
    """Linear interpolation between the two order statistics around q."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


@pytest.fixture
def counts():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 15, size=40)
    return rng.binomial(lengths, [[0.1], [0.2], [0.2]]), lengths


def test_rates_equal_a_loop(counts):
    errors, lengths = counts
    indices = resample_indices(40, 60, np.random.default_rng(5))
    assert indices.min() >= 0 and indices.max() < 40
    rates = rates_of(errors, lengths, indices)
    for system, expected in zip(rates, errors):
        np.testing.assert_allclose(system, naive_rates(expected, lengths, indices))


def test_interval_equals_a_loop(counts):
    errors, lengths = counts
    drawn = bootstrap_rates(errors, lengths, resamples=500, seed=5)
    indices = resample_indices(40, 500, np.random.default_rng(5))
    expected = naive_rates(errors[0], lengths, indices)
    for confidence, tail in ((0.95, 0.025), (0.8, 0.1)):
        low, high = interval(drawn[0], confidence)
        assert low == pytest.approx(naive_quantile(expected, tail))
        assert high == pytest.approx(naive_quantile(expected, 1 - tail))


def test_chunks_and_seed(counts, monkeypatch):
    errors, lengths = counts
    whole = bootstrap_rates(errors, lengths, resamples=101, seed=1)
    monkeypatch.setattr(bootstrap, "CHUNK_DRAWS", 40 * 7)
    np.testing.assert_allclose(bootstrap_rates(errors, lengths, 101, 1), whole)
    assert not np.allclose(bootstrap_rates(errors, lengths, 101, 2), whole)


def test_interval_covers_the_true_rate():
    """Of 200 test sets with a true WER of 10 %, about 95 % of intervals contain it."""
    rng = np.random.default_rng(0)
    lengths = np.full(200, 8)
    errors = rng.binomial(lengths, 0.1, size=(200, 200))
    drawn = bootstrap_rates(errors, lengths, resamples=1000)
    held = [low <= 0.1 <= high for low, high in map(interval, drawn)]
    assert 0.90 <= np.mean(held) <= 0.99


def test_p_value_equals_a_loop(counts):
    errors, lengths = counts
    ours, base = bootstrap_rates(errors[1:], lengths, resamples=300, seed=5)
    indices = resample_indices(40, 300, np.random.default_rng(5))
    against = 0
    observed = int(errors[1].sum()) - int(errors[2].sum())
    assert observed != 0
    for row in indices:
        resampled = int(errors[1][row].sum()) - int(errors[2][row].sum())
        against += resampled * observed <= 0
    expected = min(1.0, 2 * (against + 1) / 301)
    assert paired_p_value(ours, base, observed / lengths.sum()) == expected


def test_no_difference_is_not_significant(counts):
    errors, lengths = counts
    (drawn,) = bootstrap_rates(errors[:1], lengths, resamples=200)
    assert paired_p_value(drawn, drawn, observed=0.0) == 1.0
    # Equal rates in every resample, whatever the observed difference.
    assert paired_p_value(drawn, drawn, observed=0.1) == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_clear_difference_is_significant_in_both_directions(sign):
    rates, baseline = np.full(999, 0.2 + sign * 0.1), np.full(999, 0.2)
    assert paired_p_value(rates, baseline, sign * 0.1) == pytest.approx(2 / 1000)


def test_pairing_finds_what_separate_intervals_cannot():
    """One error fewer in each of 20 utterances: intervals overlap, p is small."""
    lengths = np.full(200, 10)
    base = np.random.default_rng(1).binomial(lengths, 0.3)
    better = base.copy()
    better[np.flatnonzero(base)[:20]] -= 1
    ours, theirs = bootstrap_rates(np.stack([better, base]), lengths, resamples=2000)
    assert interval(ours)[1] > interval(theirs)[0]
    observed = (better.sum() - base.sum()) / lengths.sum()
    assert paired_p_value(ours, theirs, observed) < 0.01


def test_false_alarms_are_as_rare_as_promised():
    """Two equal systems, 300 test sets: p < 0.05 in about 5 % of them."""
    rng = np.random.default_rng(2)
    lengths = np.full(150, 8)
    alarms = 0
    for trial in range(300):
        errors = rng.binomial(lengths, 0.15, size=(2, 150))
        ours, theirs = bootstrap_rates(errors, lengths, 400, seed=trial)
        observed = (errors[0].sum() - errors[1].sum()) / lengths.sum()
        alarms += paired_p_value(ours, theirs, observed) < 0.05
    assert 0.02 <= alarms / 300 <= 0.09


def test_a_resample_without_words_has_no_rate():
    rates = rates_of(np.array([[1, 2]]), np.array([0, 4]), np.array([[0, 0], [1, 1]]))
    assert np.isnan(rates[0, 0]) and rates[0, 1] == 0.5
