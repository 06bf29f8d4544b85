"""error_weights and posterior_weights against the formulas and the paper's figure."""

import math

import numpy as np
import pytest
import torch

from espnet_kd.losses import error_weights, posterior_weights
from tests import oracles

# The curves of the poster of Kim et al. 2019: exp(-beta * WER), three decimals
TABLE_WER = [0.01, 0.05, 0.1, 0.4, 0.7, 1.0]
TABLE = {
    1.0: [0.990, 0.951, 0.905, 0.670, 0.497, 0.368],
    2.0: [0.980, 0.905, 0.819, 0.449, 0.247, 0.135],
    5.0: [0.951, 0.779, 0.607, 0.135, 0.030, 0.007],
}


@pytest.mark.parametrize("beta", sorted(TABLE))
def test_the_table_of_the_paper(beta):
    weights = error_weights(torch.tensor(TABLE_WER, dtype=torch.float64), beta)
    np.testing.assert_allclose(weights.numpy(), TABLE[beta], rtol=0, atol=5.001e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 5.0])
def test_error_weights(beta, dtype):
    """Of every hypothesis by itself; a WER may exceed 1 (insertions)."""
    rng = np.random.default_rng(0)
    wer = np.float64(np.float32(rng.uniform(0.0, 3.0, (3, 4))))
    weights = error_weights(torch.tensor(wer, dtype=dtype), beta)
    target = [[oracles.error_weight(one, beta) for one in row] for row in wer]
    assert weights.shape == (3, 4) and weights.dtype == dtype
    rtol = {torch.float64: 1e-13, torch.float32: 1e-6}[dtype]
    np.testing.assert_allclose(weights.double().numpy(), target, rtol=rtol)


def test_beta_zero_is_uniform():
    weights = error_weights(torch.tensor([[0.0, 0.3, 2.0]]), 0.0)
    assert weights.tolist() == [[1.0, 1.0, 1.0]]


def test_error_weights_hold_at_the_ends():
    """A perfect hypothesis weighs 1 for any beta; a hopeless one 0, not NaN."""
    weights = error_weights(torch.tensor([0.0, 1e6]), 5.0)
    assert weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_posterior_weights(scale, dtype):
    """softmax of scale * score over existing hypotheses, 0 elsewhere."""
    rng = np.random.default_rng(1)
    scores = np.float64(np.float32(-20.0 + 5.0 * rng.standard_normal((4, 5))))
    lengths = np.array([5, 1, 3, 2])
    weights = posterior_weights(
        torch.tensor(scores, dtype=dtype), scale, torch.from_numpy(lengths)
    )
    target = oracles.posterior_weights(scores, scale, lengths)
    assert weights.shape == (4, 5) and weights.dtype == dtype
    rtol = {torch.float64: 1e-12, torch.float32: 2e-5}[dtype]
    np.testing.assert_allclose(weights.double().numpy(), target, rtol=rtol)
    np.testing.assert_allclose(weights.double().sum(1).numpy(), np.ones(4), rtol=1e-6)
    for b, count in enumerate(lengths):
        assert (weights[b, count:] == 0).all()


def test_scale_zero_is_uniform_over_existing_hypotheses():
    scores = torch.tensor([[-3.0, -50.0, -1.0], [-3.0, -50.0, -1.0]])
    weights = posterior_weights(scores, 0.0, torch.tensor([3, 2]))
    third = 1.0 / 3.0
    target = [[third, third, third], [0.5, 0.5, 0.0]]
    np.testing.assert_allclose(weights.numpy(), target, rtol=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_absent_hypotheses_change_nothing(poison):
    scores = torch.tensor([[-4.0, -5.0, -9.0], [-7.0, -7.5, -3.0]])
    lengths = torch.tensor([2, 1])
    target = posterior_weights(scores, 1.0, lengths)
    scores[0, 2] = scores[1, 1] = scores[1, 2] = poison
    actual = posterior_weights(scores, 1.0, lengths)
    assert actual.tolist() == target.tolist()
    assert actual[1].tolist() == [1.0, 0.0, 0.0]


def test_extreme_scores():
    """Log-scores tens of thousands apart, and all far below zero."""
    scores = torch.tensor([[-1e4, -2e4, 0.0], [-1e4, -1e4, -1e4]])
    weights = posterior_weights(scores, 1.0, torch.tensor([3, 3]))
    np.testing.assert_allclose(weights[0].numpy(), [0.0, 0.0, 1.0])
    np.testing.assert_allclose(weights[1].numpy(), [1 / 3] * 3, rtol=1e-6)


def test_one_hypothesis_weighs_one():
    weights = posterior_weights(torch.tensor([[-123.0]]), 1.0, torch.tensor([1]))
    assert weights.tolist() == [[1.0]]
