"""The two backends agree with each other, and their results are consistent."""

import itertools

import pytest
import torch

from espnet_kd.lattice import (
    best_path,
    has_k2,
    occupancy,
    total_score,
    transducer_loss,
)

needs_k2 = pytest.mark.skipif(not has_k2(), reason="k2 is not installed")
BACKENDS = ["torch", pytest.param("k2", marks=needs_k2)]
SHAPES = [(3, 6, 4, 5), (4, 1, 3, 4), (3, 3, 6, 4), (2, 5, 0, 3), (1, 1, 0, 2)]


def make_batch(batch, frames, symbols, classes, dtype=torch.float64, scale=2.0):
    """Ragged lattices; the first utterance fills the tensor, labels end in -1."""
    generator = torch.Generator().manual_seed(7 * frames + symbols)
    logits = scale * torch.randn(
        batch, frames, symbols + 1, classes, generator=generator, dtype=dtype
    )
    labels = torch.randint(1, classes, (batch, symbols), generator=generator)
    t = torch.randint(1, frames + 1, (batch,), generator=generator)
    u = torch.randint(0, symbols + 1, (batch,), generator=generator)
    t[0], u[0] = frames, symbols
    labels[torch.arange(symbols) >= u[:, None]] = -1
    return logits, labels, t, u


@needs_k2
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k2_agrees_with_torch(shape, dtype):
    logits, *rest = make_batch(*shape, dtype=dtype)
    results = {}
    for backend in ("k2", "torch"):
        x = logits.clone().requires_grad_()
        score = total_score(x, *rest, backend=backend)
        score.sum().backward()
        occupied = occupancy(logits, *rest, backend=backend)
        results[backend] = (
            score.detach(),
            x.grad,
            occupied,
            *best_path(logits, *rest, backend=backend),
        )
    for ours, theirs in zip(results["torch"], results["k2"], strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


@needs_k2
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_ties_are_broken_the_same_way(levels):
    logits, *rest = make_batch(5, 7, 4, 6, dtype=torch.float32)
    logits = logits.round().clamp(0, levels - 1)
    k2, ours = (best_path(logits, *rest, backend=b)[0] for b in ("k2", "torch"))
    assert torch.equal(k2, ours)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tie_goes_to_the_earliest_emission(backend):
    path, _, _ = best_path(
        torch.zeros(1, 3, 3, 4),
        torch.tensor([[1, 2]]),
        torch.tensor([3]),
        torch.tensor([2]),
        backend=backend,
    )
    assert path[0].tolist() == [[0, 0], [0, 1], [0, 2], [1, 2], [2, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_path_is_an_alignment_and_below_the_total(backend, shape):
    logits, labels, t, u = make_batch(*shape)
    path, lengths, score = best_path(logits, labels, t, u, backend=backend)
    assert path.dtype == torch.int64
    assert torch.equal(lengths, t + u)
    assert path.shape[1] == lengths.max()
    log_probs = logits.log_softmax(-1)
    ids = labels.clamp(min=1)[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    by_blank, by_label = log_probs[..., 0], log_probs[:, :, :-1].gather(-1, ids)[..., 0]
    for b, n in enumerate(lengths.tolist()):
        nodes = path[b, :n].tolist()
        last = [int(t[b]) - 1, int(u[b])]
        assert nodes[0] == [0, 0] and nodes[-1] == last
        assert path[b, n:].tolist() == [last] * (path.shape[1] - n)
        expected = by_blank[b, last[0], last[1]]
        for (t0, u0), (t1, u1) in itertools.pairwise(nodes):
            assert (t1 - t0, u1 - u0) in [(1, 0), (0, 1)]
            expected = expected + (by_blank if t1 > t0 else by_label)[b, t0, u0]
        torch.testing.assert_close(score[b], expected)
    assert (score <= total_score(logits, labels, t, u, backend=backend) + 1e-9).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_occupation_sums(backend, shape):
    logits, labels, t, u = make_batch(*shape)
    use = occupancy(logits, labels, t, u, backend=backend)
    assert use.shape == (*logits.shape[:3], 2)
    torch.testing.assert_close(use[..., 0].sum((1, 2)), t.double())
    row_has_label = (torch.arange(shape[2] + 1) < u[:, None]).double()
    torch.testing.assert_close(use[..., 1].sum(1), row_has_label)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    logits, *rest = make_batch(2, 3, 2, 4)
    assert torch.autograd.gradcheck(
        lambda x: total_score(x, *rest, backend=backend), logits.requires_grad_()
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e9])
@pytest.mark.parametrize("junk_label", [-1, 99])
def test_padding_is_never_read(backend, garbage, junk_label):
    logits, labels, t, u = make_batch(4, 5, 3, 4, dtype=torch.float32)
    labels = torch.where(labels < 0, torch.full_like(labels, junk_label), labels)
    pad = torch.arange(5)[:, None] >= t[:, None, None]
    pad = pad | (torch.arange(4) > u[:, None, None])
    clean = logits.masked_fill(pad[..., None], 0).requires_grad_()
    dirty = logits.masked_fill(pad[..., None], garbage).requires_grad_()
    assert pad.any()
    for x in (clean, dirty):
        transducer_loss(x, labels, t, u, backend=backend, reduction="sum").backward()
    assert torch.equal(clean.grad, dirty.grad)
    assert not dirty.grad[pad].any()
    for function in (total_score, occupancy):
        a, b = (function(x, labels, t, u, backend=backend) for x in (clean, dirty))
        assert torch.equal(a, b) and b.isfinite().all()
    for a, b in zip(
        *(best_path(x, labels, t, u, backend=backend) for x in (clean, dirty)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
def test_huge_logits_stay_finite(backend, scale):
    logits, *rest = make_batch(3, 20, 6, 5, dtype=torch.float32)
    logits = (scale * logits.sign()).requires_grad_()
    score = total_score(logits, *rest, backend=backend)
    score.sum().backward()
    assert score.isfinite().all() and logits.grad.isfinite().all()
    use = occupancy(logits, *rest, backend=backend)
    torch.testing.assert_close(use[..., 0].sum((1, 2)), rest[1].float())
    assert best_path(logits, *rest, backend=backend)[2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    logits, *rest = make_batch(3, 6, 3, 5, dtype=torch.float32)
    low = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = total_score(low, *rest, backend=backend)
    assert score.dtype == torch.float32
    assert torch.equal(score, total_score(low.float(), *rest, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_and_labels_may_be_int32(backend):
    logits, labels, t, u = make_batch(3, 6, 3, 5)
    short = (labels.int(), t.int(), u.int())
    for function in (total_score, occupancy, best_path):
        a = function(logits, labels, t, u, backend=backend)
        b = function(logits, *short, backend=backend)
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blank_may_be_any_class(backend):
    logits, labels, t, u = make_batch(3, 5, 3, 4)
    rolled = logits.roll(-1, dims=-1)  # class 0 becomes the last one
    a = total_score(logits, labels, t, u, backend=backend)
    b = total_score(rolled, labels - 1, t, u, blank=3, backend=backend)
    torch.testing.assert_close(a, b)


def test_reductions_of_the_transducer_loss():
    batch = make_batch(3, 5, 3, 4)
    each = transducer_loss(*batch)
    torch.testing.assert_close(each, -total_score(*batch))
    torch.testing.assert_close(transducer_loss(*batch, reduction="sum"), each.sum())
    torch.testing.assert_close(
        transducer_loss(*batch, reduction="mean"), each.sum() / 3
    )
    with pytest.raises(ValueError, match="'none', 'sum', 'mean'"):
        transducer_loss(*batch, reduction="batch")


def test_no_gradient_through_occupation_and_path():
    logits, *rest = make_batch(2, 3, 2, 4)
    logits.requires_grad_()
    assert not occupancy(logits, *rest).requires_grad
    assert not best_path(logits, *rest)[2].requires_grad


def test_refusals_name_the_argument():
    logits, labels, t, u = make_batch(2, 4, 3, 5)
    cases = [
        ("logits", (logits[0], labels, t, u)),
        (r"labels: shape \(2, 2\).*\(2, 4, 4, 5\)", (logits, labels[:, :2], t, u)),
        ("logit_lengths: values", (logits, labels, t + 4, u)),
        ("logit_lengths.*0 frames", (logits, labels, t * 0, u)),
        ("label_lengths: values", (logits, labels, t, u + 4)),
        ("label_lengths: shape", (logits, labels, t, u[:1])),
        ("label_lengths: expected integers", (logits, labels, t, u.float())),
        ("labels: ids", (logits, labels + 9, t, u)),
    ]
    for message, arguments in cases:
        with pytest.raises(ValueError, match=message):
            total_score(*arguments)
    with pytest.raises(ValueError, match="blank: 5"):
        total_score(logits, labels, t, u, blank=5)
    with pytest.raises(ValueError, match="backend: 'cuda'"):
        total_score(logits, labels, t, u, backend="cuda")


@pytest.mark.skipif(has_k2(), reason="k2 is installed")
def test_k2_is_refused_where_it_is_absent():
    with pytest.raises(ImportError, match="'k2' was requested.*backend='torch'"):
        total_score(*make_batch(2, 3, 2, 4), backend="k2")
