"""The Triton kernels against float64 torch.

They run on a GPU if present, else through Triton's interpreter. That has to
be chosen before Triton is imported and would hold for every other test of the process,
so `test_in_the_interpreter` runs this file once more in a separate process.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from espnet_kd.lattice import triton_kernels
from espnet_kd.lattice.triton_kernels import linear_scores, rest_gradient_, usable
from espnet_kd.losses import FactoredLogits, transducer_kd

INTERPRETED = triton_kernels.INTERPRETED
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device"
)


@pytest.fixture
def device() -> torch.device:
    if triton_kernels.triton is None:
        pytest.skip("Triton is not installed")
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: test_in_the_interpreter runs this test")
    return torch.device("cuda")


@pytest.mark.skipif(triton_kernels.triton is None, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 40, done.stdout


def oracle(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    return logits.gather(1, ids), log_rest(logits, ids, scale)


def log_rest(logits: Tensor, ids: Tensor, scale: float) -> Tensor:
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    return (logits * scale).masked_fill(kept, -torch.inf).logsumexp(1)


def some_ids(n: int, classes: int, kept: int, device: torch.device) -> Tensor:
    return torch.rand(n, classes, device=device).argsort(1)[:, :kept].contiguous()


def check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    scale: float = 1.0,
    tolerance: float = 2e-5,
) -> None:
    scores, rest = linear_scores(hidden, weight, bias, ids, scale)
    assert scores.dtype == rest.dtype == torch.float32
    expected_scores, expected_rest = oracle(hidden, weight, bias, ids, scale)
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(scores.double(), expected_scores, **close)
    torch.testing.assert_close(rest.double(), expected_rest, **close)


@pytest.mark.parametrize("kept", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "n, width, classes, scale",
    [(1, 16, 7, 1.0), (17, 7, 33, 0.5), (33, 40, 64, 1.0), (20, 32, 101, 0.5)],
)
def test_scores_and_rest(n, width, classes, kept, scale, device) -> None:
    hidden = torch.randn(n, width, device=device)
    weight = torch.randn(classes, width, device=device)
    bias = torch.randn(classes, device=device)
    ids = some_ids(n, classes, kept, device)
    check(hidden, weight, bias, ids, scale)
    check(hidden, weight, None, ids, scale)


def test_blocks_may_begin_with_nothing_of_the_rest(device) -> None:
    """Classes 0..31 are the interpreter's first tile: all of them kept."""
    hidden, weight = torch.randn(3, 8, device=device), torch.randn(40, 8, device=device)
    ids = torch.arange(32, device=device).repeat(3, 1)
    assert usable(device, hidden.dtype, 32)
    check(hidden, weight, None, ids)


def test_a_class_may_be_kept_twice(device) -> None:
    hidden, weight = torch.randn(9, 8, device=device), torch.randn(37, 8, device=device)
    ids = some_ids(9, 37, 2, device)[:, [0, 1, 0, 0]]
    check(hidden, weight, torch.randn(37, device=device), ids)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_rest_of_no_class_is_minus_infinity(device) -> None:
    hidden, weight = torch.randn(5, 8, device=device), torch.randn(3, 8, device=device)
    ids = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 1, 1], [2, 2, 2], [1, 0, 2]])
    ids = ids.to(device)
    _, rest = linear_scores(hidden, weight, None, ids)
    assert rest.isinf().tolist() == [True, True, False, False, True]
    check(hidden, weight, None, ids)


@pytest.mark.parametrize("level, gap", [(0, 90), (0, -90), (400, 0), (-400, 0)])
def test_large_logits(level, gap, device) -> None:
    """Nothing overflows or vanishes where float32's exp would.

    With a gap the kept classes take all of the probability, or none.
    """
    hidden, weight = torch.randn(6, 8, device=device), torch.randn(50, 8, device=device)
    bias = torch.full((50,), float(level), device=device)
    bias[:2] += gap
    ids = torch.tensor([0, 1], device=device).repeat(6, 1)
    check(hidden, weight, bias, ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype, device) -> None:
    hidden = torch.randn(20, 40, device=device).tanh().to(dtype)
    weight = torch.randn(70, 40, device=device).to(dtype)
    ids = some_ids(20, 70, 2, device)
    for bias in (torch.randn(70, device=device), weight[:, 0].contiguous(), None):
        check(hidden, weight, bias, ids)


def test_rows_need_not_be_contiguous(device) -> None:
    hidden = torch.randn(8, 12, device=device).T
    weight = torch.randn(33, 16, device=device)[:, ::2]
    ids = some_ids(12, 33, 3, device)[:, ::2]
    check(hidden, weight, None, ids)


def test_no_nodes(device) -> None:
    hidden, weight = torch.zeros(0, 8, device=device), torch.zeros(5, 8, device=device)
    ids = torch.zeros(0, 2, dtype=torch.int64, device=device)
    scores, rest = linear_scores(hidden, weight, None, ids)
    assert scores.shape == (0, 2) and rest.shape == (0,)
    rest_gradient_(torch.zeros(0, 5, device=device), ids, rest, rest, scores)


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float32, 3e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("n, classes, kept", [(1, 3, 2), (7, 33, 1), (5, 2500, 5)])
def test_rest_gradient(n, classes, kept, scale, dtype, tolerance, device) -> None:
    z = torch.randn(n, classes, device=device).mul(3).to(dtype)
    ids = some_ids(n, classes, kept, device)
    ids[:, -1] = ids[:, 0]  # a class that is kept twice, where there are two
    score_gradient = torch.randn(n, kept, device=device)
    outer = torch.randn(n, device=device)

    exact = z.double().requires_grad_()
    rest = log_rest(exact, ids, scale)
    total = (exact.gather(1, ids) * score_gradient).sum() + (rest * outer).sum()
    (expected,) = torch.autograd.grad(total, exact)

    rest_gradient_(z, ids, rest.detach().float(), outer * scale, score_gradient, scale)
    assert z.dtype == dtype
    torch.testing.assert_close(z.double(), expected, rtol=tolerance, atol=tolerance / 9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rest_gradient_where_no_class_is_left(device) -> None:
    z = torch.randn(4, 3, device=device)
    ids = torch.tensor([2, 0, 1], device=device).repeat(4, 1)
    own = torch.randn(4, 3, device=device)
    empty = torch.full((4,), -torch.inf, device=device)
    rest_gradient_(z, ids, empty, torch.zeros(4, device=device), own)
    assert torch.equal(z.gather(1, ids), own)


def test_both_kernels_give_the_gradient_of_the_joint(device) -> None:
    """What the engine does: scores, then the chunk's logits again, then products."""
    hidden = torch.randn(10, 8, dtype=torch.float64, device=device).requires_grad_()
    weight = torch.randn(35, 8, dtype=torch.float64, device=device).requires_grad_()
    ids, scale = some_ids(10, 35, 2, device), 0.5
    scores, rest = oracle(hidden, weight, None, ids, scale)
    expected = torch.autograd.grad(
        (scores.sin().sum() + rest.sin().sum()), [hidden, weight]
    )

    h, w = hidden.detach().float(), weight.detach().float()
    scores, rest = linear_scores(h, w, None, ids, scale)
    chunk = h @ w.T
    rest_gradient_(chunk, ids, rest, rest.cos() * scale, scores.cos(), scale)
    for found, target in zip((chunk @ w, chunk.T @ h), expected):
        torch.testing.assert_close(found.double(), target, rtol=2e-5, atol=2e-5)


def test_a_lattice_is_read_as_by_torch(device, monkeypatch) -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(*shape, device=device).requires_grad_()
        for shape in [(2, 5, 24), (2, 4, 24), (37, 24), (37,)]
    ]
    lattice = (torch.randint(1, 37, (2, 3)), torch.tensor([5, 3]), torch.tensor([3, 1]))
    lattice = tuple(x.to(device) for x in lattice)
    teacher = FactoredLogits(*(torch.randn_like(x) for x in tensors))
    results, calls = [], []
    for fused in (True, False):
        monkeypatch.setattr(
            triton_kernels,
            "usable",
            lambda *args, fused=fused: calls.append(fused) or fused,
        )
        losses = transducer_kd(
            FactoredLogits(*tensors), teacher, *lattice, backend="torch"
        )
        gradients = torch.autograd.grad(losses[0] + 2 * losses[1], tensors)
        results.append((*losses, *gradients))
    assert True in calls and False in calls
    for fused, by_torch in zip(*results):
        torch.testing.assert_close(fused, by_torch, rtol=2e-4, atol=2e-5)


def test_hidden_and_weight_must_share_a_dtype() -> None:
    hidden, weight = torch.zeros(4, 6), torch.zeros(3, 6, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="weight: torch.bfloat16, but hidden is"):
        linear_scores(hidden, weight, None, torch.zeros(4, 1, dtype=torch.int64))


def test_logits_must_be_the_buffer_itself() -> None:
    z, ids = torch.zeros(4, 6)[:, ::2], torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="logits: not contiguous"):
        rest_gradient_(z, ids, z[:, 0], z[:, 0], z[:, :1])


def test_usable_refuses_what_does_not_fit(monkeypatch) -> None:
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert not usable(here, torch.float64, 2)
    assert not usable(here, torch.float32, 0)
    assert not usable(here, torch.float32, triton_kernels.MAX_KEPT + 1)
    if not INTERPRETED:
        assert not usable(torch.device("cpu"), torch.float32, 2)
    monkeypatch.setattr(triton_kernels, "triton", None)
    assert not usable(here, torch.float32, 2)


@pytest.mark.skipif(triton_kernels.triton is None, reason="Triton is not installed")
def test_float32_is_multiplied_as_torch_multiplies_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert triton_kernels.matmul_precision() == "tf32"
        torch.set_float32_matmul_precision("highest")
        assert triton_kernels.matmul_precision() == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width, classes, kept", [(640, 5000, 2), (300, 501, 10)])
def test_large_shapes(width, classes, kept, dtype, device) -> None:
    hidden = torch.randn(5000, width, device=device).tanh().to(dtype)
    weight = torch.randn(classes, width, device=device).mul(0.1).to(dtype)
    bias = torch.randn(classes, device=device)
    assert usable(device, dtype, kept)
    check(hidden, weight, bias, some_ids(5000, classes, kept, device), tolerance=1e-4)


@needs_gpu
def test_offsets_past_32_bits(device) -> None:
    n, classes = 440_000, 5000
    if torch.cuda.mem_get_info()[0] < 8e9:
        pytest.skip("needs 8 GB of free GPU memory")
    z = torch.zeros(n, classes, dtype=torch.bfloat16, device=device)
    ids = torch.zeros(n, 1, dtype=torch.int64, device=device)
    rest, one = torch.zeros(n, device=device), torch.ones(n, device=device)
    rest_gradient_(z, ids, rest, 2 * one, 3 * one[:, None])
    for row in (0, n // 2, n - 1):
        assert z[row, 0] == 3 and (z[row, 1:] == 2).all()
