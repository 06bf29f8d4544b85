"""The stand-in for warprnnt_pytorch: value, gradient, backend, place."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from espnet_kd.lattice import backends
from espnet_kd.models import warprnnt
from tests import oracles

LABELS, FRAMES, LABEL_LENGTHS = [[1, 2, 2], [3, 1, 0]], [4, 3], [3, 2]
BLANK = 0


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch):
    """As if `install` had not run in this process yet."""
    monkeypatch.delitem(sys.modules, warprnnt.NAME, raising=False)
    if importlib.util.find_spec(warprnnt.NAME):
        pytest.skip("the real warprnnt_pytorch is installed")
    yield
    sys.modules.pop(warprnnt.NAME, None)


def arguments() -> tuple[torch.Tensor, ...]:
    """As returned by ESPnet's get_transducer_task_io: int32, padded with blank."""
    logits = torch.randn(2, 4, 4, 5, requires_grad=True)
    return logits, *(
        torch.tensor(x, dtype=torch.int32) for x in (LABELS, FRAMES, LABEL_LENGTHS)
    )


def enumerated(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """-log P of both utterances, and its gradient, from a list of all alignments."""
    logits = logits.detach().double().numpy()
    losses, gradient = np.zeros(2), np.zeros(logits.shape)
    for b, (frames, count) in enumerate(zip(FRAMES, LABEL_LENGTHS)):
        lattice, labels = logits[b, :frames, : count + 1], LABELS[b][:count]
        exits = oracles.exit_log_probs(lattice, labels, BLANK)
        losses[b] = -oracles.enumerate_lattice(exits)[0]
        gradient[b, :frames, : count + 1] = -oracles.total_score_grad(
            lattice, labels, BLANK
        )
    return losses, gradient


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_value_and_gradient(reduction: str):
    logits, *rest = arguments()
    loss = warprnnt.RNNTLoss(blank=BLANK, reduction=reduction)(logits, *rest)
    losses, gradient = enumerated(logits)
    share = 0.5 if reduction == "mean" else 1.0
    expected = losses if reduction == "none" else share * losses.sum()
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5)
    loss.sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), share * gradient, atol=1e-6)


def test_blank_elsewhere():
    logits, labels, frames, lengths = arguments()
    moved = warprnnt.RNNTLoss(blank=4)(logits.roll(-1, -1), labels - 1, frames, lengths)
    first = warprnnt.RNNTLoss(blank=0)(logits, labels, frames, lengths)
    torch.testing.assert_close(moved, first)


def test_fastemit_is_refused():
    with pytest.raises(
        ValueError, match="fastemit_lambda=0.01: .*set fastemit_lambda to 0"
    ):
        warprnnt.RNNTLoss(fastemit_lambda=0.01)


def test_it_takes_the_best_backend(monkeypatch: pytest.MonkeyPatch):
    chosen = backends.choose_backend(None, torch.device("cpu"))
    try:
        import k2  # noqa: F401

        name = "espnet_kd.lattice.k2_backend"
    except ImportError:
        name = "espnet_kd.lattice.torch_backend"
    assert chosen.__name__ == name
    calls = []
    original = chosen.forward_backward
    spy = lambda *a: calls.append(1) or original(*a)  # noqa: E731
    monkeypatch.setattr(chosen, "forward_backward", spy)
    warprnnt.RNNTLoss()(*arguments())
    assert calls == [1]


def test_installation(no_package):
    assert warprnnt.installed() == "absent"
    with pytest.raises(ImportError):
        importlib.import_module(warprnnt.NAME)
    warprnnt.install()
    assert warprnnt.installed() == "stand-in"
    from warprnnt_pytorch import RNNTLoss

    assert RNNTLoss is warprnnt.RNNTLoss
    assert importlib.util.find_spec(warprnnt.NAME).name == warprnnt.NAME
    module = sys.modules[warprnnt.NAME]
    warprnnt.install()
    assert sys.modules[warprnnt.NAME] is module


def test_the_real_package_is_left_alone(no_package, monkeypatch: pytest.MonkeyPatch):
    real = types.ModuleType(warprnnt.NAME)
    real.RNNTLoss = type("RNNTLoss", (), {})
    monkeypatch.setitem(sys.modules, warprnnt.NAME, real)
    warprnnt.install()
    assert warprnnt.installed() == "real"
    assert sys.modules[warprnnt.NAME] is real
