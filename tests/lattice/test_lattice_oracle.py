"""Total score, occupancy, best path and transducer loss against enumeration."""

import math

import numpy as np
import pytest
import torch

from espnet_kd.lattice import best_path, occupancy, total_score, transducer_loss
from tests import oracles
from tests.oracles import random_lattices

try:
    import k2  # noqa: F401

    WITHOUT_K2 = False
except ImportError:
    WITHOUT_K2 = True

BACKENDS = [
    "torch",
    pytest.param(
        "k2", marks=pytest.mark.skipif(WITHOUT_K2, reason="k2 is not installed")
    ),
]
# (B, T, U, V, blank): every lattice here is small enough to list its alignments
TINY = [
    (3, 4, 3, 5, 0),
    (4, 3, 2, 3, 2),
    (2, 4, 1, 2, 1),
    (2, 2, 3, 4, 3),
    (2, 1, 3, 3, 1),
    (2, 3, 0, 3, 0),
    (1, 1, 0, 2, 0),
]
LARGER = [(4, 25, 9, 50, 0), (3, 7, 12, 30, 29), (2, 40, 5, 11, 4)]
TOLERANCE = {torch.float64: (1e-9, 1e-10), torch.float32: (1e-5, 1e-5)}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def tensors(batch, dtype=torch.float64, logits=None):
    """The five arguments of the lattice functions."""
    logits = batch.student if logits is None else logits
    return (
        torch.tensor(logits, dtype=dtype),
        torch.from_numpy(batch.labels),
        torch.from_numpy(batch.logit_lengths),
        torch.from_numpy(batch.label_lengths),
    )


def expected(batch, reference, logits=None):
    """`reference` (enumerate_lattice or sweep_lattice) of every utterance."""
    results = []
    for b in range(len(batch.labels)):
        cut, labels = batch.cut(b, logits)
        results.append(reference(oracles.exit_log_probs(cut, labels, batch.blank)))
    return results


def expected_grad(batch, upstream, logits=None):
    """Gradient of sum_b upstream_b log P_b in the padded shape."""
    grad = np.zeros(batch.student.shape)
    for b, weight in enumerate(upstream):
        cut, labels = batch.cut(b, logits)
        frames, rows, _ = cut.shape
        one = oracles.total_score_grad(cut, labels, batch.blank)
        grad[b, :frames, :rows] = weight * one
    return grad


def assert_near(actual, target, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    actual = np.asarray(actual.detach().double())
    np.testing.assert_allclose(actual, target, rtol=rtol, atol=atol)


def assert_valid_path(path, frames, labels):
    """T + U nodes from (0, 0) to (T-1, U), one step of t or of u at a time."""
    assert path.shape == (frames + labels, 2)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [frames - 1, labels]
    steps = np.diff(path, axis=0).tolist()
    assert all(step in ([1, 0], [0, 1]) for step in steps)


def path_score(exits, path):
    """Log-probability of the alignment that visits the nodes of `path`."""
    kinds = [
        oracles.LABEL if step[1] else oracles.BLANK for step in np.diff(path, axis=0)
    ]
    steps = [
        (int(t), int(u), kind) for (t, u), kind in zip(path, kinds + [oracles.BLANK])
    ]
    return oracles.alignment_score(exits, steps)


def test_the_references_agree_with_each_other():
    """The sweep equals the listing, its gradient a finite difference of the listing."""
    for seed, case in enumerate(TINY):
        batch = random_lattices(seed, *case)
        listed = expected(batch, oracles.enumerate_lattice)
        for one, other in zip(listed, expected(batch, oracles.sweep_lattice)):
            for left, right in zip(one, other):
                np.testing.assert_allclose(left, right, rtol=1e-11, atol=1e-12)
    batch = random_lattices(0, 1, 3, 2, 3)
    logits, labels = batch.cut(0)

    def score(z):
        return oracles.enumerate_lattice(oracles.exit_log_probs(z, labels, 0))[0]

    np.testing.assert_allclose(
        oracles.total_score_grad(logits, labels, 0),
        oracles.central_difference(score, logits),
        atol=1e-8,
    )
    assert len(list(oracles.alignments(4, 3))) == math.comb(6, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", TINY + LARGER, ids=str)
def test_total_score_value_and_gradient(case, dtype, backend):
    batch = random_lattices(1, *case, dtype=np.float32)
    reference = oracles.enumerate_lattice if case in TINY else oracles.sweep_lattice
    logits, *rest = tensors(batch, dtype)
    logits.requires_grad_()
    score = total_score(logits, *rest, blank=batch.blank, backend=backend)
    assert score.shape == (case[0],) and score.dtype == dtype
    assert_near(score, [one[0] for one in expected(batch, reference)], dtype)
    upstream = np.linspace(-1.0, 2.0, case[0])
    (score * torch.tensor(upstream, dtype=dtype)).sum().backward()
    assert_near(logits.grad, expected_grad(batch, upstream), dtype)


def test_total_score_gradcheck(backend):
    batch = random_lattices(2, 2, 3, 2, 3, blank=1)
    logits, *rest = tensors(batch)
    assert torch.autograd.gradcheck(
        lambda z: total_score(z, *rest, blank=1, backend=backend),
        (logits.requires_grad_(),),
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("case", [TINY[0], TINY[1], TINY[5], LARGER[1]], ids=str)
def test_transducer_loss_value_and_gradient(case, reduction, backend):
    """-log P(labels), and the sum or the mean of it over the utterances."""
    batch = random_lattices(3, *case)
    logits, *rest = tensors(batch)
    logits.requires_grad_()
    loss = transducer_loss(
        logits, *rest, blank=batch.blank, reduction=reduction, backend=backend
    )
    scores = [one[0] for one in expected(batch, oracles.sweep_lattice)]
    target = -np.array(scores)
    share = 1.0
    if reduction != "none":
        share = {"sum": 1.0, "mean": 1.0 / case[0]}[reduction]
        target = share * target.sum()
    assert loss.shape == np.shape(target)
    assert_near(loss, target)
    loss.sum().backward()
    assert_near(logits.grad, expected_grad(batch, np.full(case[0], -share)))


def test_transducer_loss_gradcheck(backend):
    batch = random_lattices(4, 2, 2, 2, 3)
    logits, *rest = tensors(batch)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: transducer_loss(
                z, *rest, reduction=r, backend=backend
            ),
            (logits.requires_grad_(),),
        )


def test_transducer_loss_sums_nothing_by_default(backend):
    batch = random_lattices(4, 3, 3, 2, 4)
    args = tensors(batch)
    loss = transducer_loss(*args, backend=backend)
    assert_near(loss, -total_score(*args, backend=backend).numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", TINY + LARGER, ids=str)
def test_occupancy(case, dtype, backend):
    batch = random_lattices(5, *case, dtype=np.float32)
    reference = oracles.enumerate_lattice if case in TINY else oracles.sweep_lattice
    actual = occupancy(*tensors(batch, dtype), blank=batch.blank, backend=backend)
    target = np.zeros((*batch.student.shape[:3], 2))
    for b, (_, one, _) in enumerate(expected(batch, reference)):
        target[b, : one.shape[0], : one.shape[1]] = one
    assert actual.shape == target.shape and actual.dtype == dtype
    assert_near(actual, target, dtype)
    assert (actual[torch.from_numpy(batch.padding())] == 0).all()
    sums = actual.double().sum(dim=(1, 2)).numpy()  # T blanks and U labels each
    lengths = np.stack([batch.logit_lengths, batch.label_lengths], axis=1)
    np.testing.assert_allclose(sums, lengths, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", TINY + LARGER, ids=str)
def test_best_path_is_valid_and_no_alignment_is_better(case, dtype, backend):
    reference = oracles.enumerate_lattice if case in TINY else oracles.sweep_lattice
    for seed in range(3):
        batch = random_lattices(seed, *case, dtype=np.float32)
        args = tensors(batch, dtype)
        path, lengths, score = best_path(*args, blank=batch.blank, backend=backend)
        assert path.dtype == torch.int64
        sizes = batch.logit_lengths + batch.label_lengths
        assert path.shape == (case[0], sizes.max(), 2)
        assert lengths.tolist() == sizes.tolist()
        target = [one[2] for one in expected(batch, reference)]
        np.testing.assert_allclose(score.double().numpy(), target, rtol=1e-5, atol=1e-5)
        for b, best in enumerate(target):
            cut, labels = batch.cut(b)
            nodes = path[b, : lengths[b]].numpy()
            assert_valid_path(nodes, len(cut), len(labels))
            exits = oracles.exit_log_probs(cut, labels, batch.blank)
            assert path_score(exits, nodes) == pytest.approx(best, abs=2e-5)


def test_best_path_is_not_the_greedy_walk(backend):
    """A label that looks bad at (0, 0) opens the only good way through."""
    logits = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    logits[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0])  # greedy: blank first
    logits[0, 1, 0] = torch.tensor([9.0, 0.0, 0.0])  # then the label costs 9
    logits[0, :, 1] = torch.tensor([9.0, 0.0, 0.0])
    one = torch.tensor([1])
    path, lengths, _ = best_path(logits, one[None], 2 * one, one, backend=backend)
    assert path[0, : lengths[0]].tolist() == [[0, 0], [0, 1], [1, 1]]


def test_best_path_score_in_float64(backend):
    """The score is as exact as the input (k2 keeps arc scores in float32)."""
    batch = random_lattices(7, 3, 12, 5, 9)
    score = best_path(*tensors(batch), backend=backend)[2]
    target = [one[2] for one in expected(batch, oracles.sweep_lattice)]
    assert score.dtype == torch.float64
    assert_near(score, target)


@pytest.mark.parametrize("classes", [2, 4])
def test_ties_still_give_a_path(classes, backend):
    batch = random_lattices(8, 3, 4, 3, classes, scale=0.0)
    path, lengths, score = best_path(*tensors(batch), backend=backend)
    target = (batch.logit_lengths + batch.label_lengths) * -math.log(classes)
    np.testing.assert_allclose(score.numpy(), target, rtol=1e-6)
    for b in range(3):
        frames, count = batch.logit_lengths[b], batch.label_lengths[b]
        assert_valid_path(path[b, : lengths[b]].numpy(), frames, count)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_changes_nothing(poison, backend):
    batch = random_lattices(9, 4, 5, 3, 6, blank=2)
    clean = tensors(batch)
    for label in (-1, 10**9):
        bad = batch.poisoned(poison, label)
        logits, *rest = tensors(bad)
        logits.requires_grad_()
        options = {"blank": 2, "backend": backend}
        score = total_score(logits, *rest, **options)
        assert_near(score, total_score(*clean, **options).numpy())
        score.sum().backward()
        assert (logits.grad[torch.from_numpy(batch.padding())] == 0).all()
        assert_near(logits.grad, expected_grad(batch, np.ones(4)))

        logits.grad = None
        transducer_loss(logits, *rest, reduction="mean", **options).backward()
        assert_near(logits.grad, expected_grad(batch, np.full(4, -0.25)))
        assert (logits.grad[torch.from_numpy(batch.padding())] == 0).all()

        bad_args = (logits.detach(), *rest)
        actual = occupancy(*bad_args, **options)
        assert_near(actual, occupancy(*clean, **options).numpy())
        path, lengths, best = best_path(*bad_args, **options)
        clean_path, clean_lengths, clean_best = best_path(*clean, **options)
        assert lengths.tolist() == clean_lengths.tolist()
        assert_near(best, clean_best.numpy())
        for b, size in enumerate(lengths):
            assert path[b, :size].tolist() == clean_path[b, :size].tolist()


def test_more_padding_and_another_order_change_nothing(backend):
    batch = random_lattices(10, 4, 5, 3, 6)
    logits, labels, frames, counts = tensors(batch)
    order = [2, 0, 3, 1]
    wide = torch.full((4, 8, 6, 6), math.nan, dtype=torch.float64)
    wide[:, :5, :4] = logits
    wide_labels = torch.full((4, 5), -1)
    wide_labels[:, :3] = labels
    moved = (wide[order], wide_labels[order], frames[order], counts[order])
    score = total_score(*moved, backend=backend)
    target = [one[0] for one in expected(batch, oracles.enumerate_lattice)]
    assert_near(score, np.array(target)[order])
    assert occupancy(*moved, backend=backend).shape == (4, 8, 6, 2)
    path, lengths, _ = best_path(*moved, backend=backend)
    same, _, _ = best_path(logits, labels, frames, counts, backend=backend)
    for new, old in enumerate(order):
        size = lengths[new]
        assert path[new, :size].tolist() == same[old, :size].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_logits(dtype, backend):
    """Scores of about -10000, posteriors of 0 and 1: finite and correct."""
    batch = random_lattices(11, 3, 4, 3, 4, scale=1e4, dtype=np.float32)
    logits, *rest = tensors(batch, dtype)
    logits.requires_grad_()
    score = total_score(logits, *rest, backend=backend)
    target = expected(batch, oracles.enumerate_lattice)
    np.testing.assert_allclose(
        score.detach().numpy(), [one[0] for one in target], rtol=1e-5
    )
    score.sum().backward()
    assert_near(logits.grad, expected_grad(batch, np.ones(3)), dtype)
    logits = logits.detach()
    share = occupancy(logits, *rest, backend=backend)
    assert torch.isfinite(share).all()
    sums = share.double().sum(dim=(1, 2)).numpy()
    lengths = np.stack([batch.logit_lengths, batch.label_lengths], axis=1)
    np.testing.assert_allclose(sums, lengths, atol=1e-4)
    path, lengths, best = best_path(logits, *rest, backend=backend)
    for b, one in enumerate(target):
        cut, labels = batch.cut(b)
        exits = oracles.exit_log_probs(cut, labels, 0)
        nodes = path[b, : lengths[b]].numpy()
        assert path_score(exits, nodes) == pytest.approx(one[2], rel=1e-6)
        assert float(best[b]) == pytest.approx(one[2], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    batch = random_lattices(12, 3, 5, 3, 8)
    logits, *rest = tensors(batch, dtype)
    rounded = np.asarray(logits.double())
    logits.requires_grad_()
    score = total_score(logits, *rest, backend=backend)
    assert score.dtype == torch.float32
    target = expected(batch, oracles.sweep_lattice, rounded)
    assert_near(score, [one[0] for one in target], torch.float32)
    score.sum().backward()
    assert logits.grad.dtype == dtype
    target_grad = expected_grad(batch, np.ones(3), rounded)
    np.testing.assert_allclose(logits.grad.double(), target_grad, atol=1e-2)
    best = best_path(logits.detach(), *rest, backend=backend)[2]
    np.testing.assert_allclose(best, [one[2] for one in target], rtol=1e-5)
    share = occupancy(logits.detach(), *rest, backend=backend)
    assert share.dtype == torch.float32


def test_autocast_changes_nothing(backend):
    batch = random_lattices(13, 3, 6, 4, 20, dtype=np.float32)
    logits, *rest = tensors(batch, torch.float32)
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = total_score(logits, *rest, backend=backend)
        share = occupancy(logits.detach(), *rest, backend=backend)
    target = expected(batch, oracles.sweep_lattice)
    assert_near(score, [one[0] for one in target], torch.float32)
    cut = target[0][1]
    assert_near(share[0, : cut.shape[0], : cut.shape[1]], cut, torch.float32)
    score.sum().backward()
    assert_near(logits.grad, expected_grad(batch, np.ones(3)), torch.float32)


def test_int32_labels_and_lengths(backend):
    """ESPnet's transducer passes int32 labels and lengths."""
    batch = random_lattices(14, 3, 4, 3, 5)
    logits, *rest = tensors(batch)
    narrow = [one.to(torch.int32) for one in rest]
    target = expected(batch, oracles.enumerate_lattice)
    score = total_score(logits, *narrow, backend=backend)
    assert_near(score, [one[0] for one in target])
    loss = transducer_loss(logits, *narrow, backend=backend)
    assert_near(loss, [-one[0] for one in target])
    path, _, _ = best_path(logits, *narrow, backend=backend)
    same, _, _ = best_path(logits, *rest, backend=backend)
    assert path.dtype == torch.int64 and torch.equal(path, same)


def test_without_a_choice_a_backend_is_found():
    """backend=None works with and without k2, with the same numbers."""
    batch = random_lattices(15, 3, 5, 3, 7)
    args = tensors(batch)
    target = expected(batch, oracles.sweep_lattice)
    assert_near(total_score(*args), [one[0] for one in target])
    assert_near(transducer_loss(*args), [-one[0] for one in target])
    assert_near(occupancy(*args)[0], target[0][1])
    path, lengths, score = best_path(*args)
    assert_near(score, [one[2] for one in target])
    for b, size in enumerate(lengths):
        cut, labels = batch.cut(b)
        assert_valid_path(path[b, :size].numpy(), len(cut), len(labels))
