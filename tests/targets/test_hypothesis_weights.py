"""The weights of a KD set against those of `espnet_kd.losses`, on tensors."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
import torch

from espnet_kd import losses
from espnet_kd.targets.hypothesis_weights import error_weights, posterior_weights

RNG = random.Random(3)
LISTS = [[RNG.uniform(-80, 0) for _ in range(k)] for k in (1, 2, 5, 16)]
LISTS += [[-3.0, -3.0], [-1e4, 0.0], [-math.inf, -2.0, -1.0]]


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("scores", LISTS, ids=len)
def test_posterior_weights(scores: list[float], scale: float):
    lengths = torch.tensor([len(scores)])
    expected = losses.posterior_weights(
        torch.tensor([scores], dtype=torch.float64), scale, lengths
    )[0]
    assert sum(expected) == pytest.approx(1)
    assert posterior_weights(scores, scale) == pytest.approx(expected.tolist())


def test_without_torch():
    """Lhotse imports it, but the filters and weights of a KD set do not."""
    code = (
        "import sys; from espnet_kd.targets.hypotheses import Hypothesis; "
        "from espnet_kd.targets.selection import Candidate, Weighting; "
        "one = Candidate(1, Hypothesis('a', [1], -1.0, None, 1.0, 0.5), 0.5, 1.0); "
        "print(*Weighting('error_weighted', beta=2.0)([one])); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(math.exp(-1))


def test_without_hypotheses():
    assert posterior_weights([], 1.0) == [] == error_weights([], 1.0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_error_weights(beta: float):
    wer = [0.0, 0.1, 1.0, 7.5, math.inf]
    expected = losses.error_weights(torch.tensor(wer, dtype=torch.float64), beta)
    assert error_weights(wer, beta) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("wer, beta", [([-0.1], 1), ([math.nan], 1), ([0.1], -1)])
def test_both_refuse_the_same(wer: list[float], beta: float):
    for weights in (losses.error_weights, error_weights):
        with pytest.raises(ValueError, match="negative or NaN|is not a number >= 0"):
            weights(torch.tensor(wer) if weights is losses.error_weights else wer, beta)
