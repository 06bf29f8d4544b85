"""essence_kd, topk_targets and ensemble_logits against loops over frames."""

import math

import numpy as np
import pytest
import torch

from espnet_kd.losses import ensemble_logits, essence_kd, topk_targets
from tests import oracles

# (B, L, V, K)
SHAPES = [(3, 5, 7, 3), (4, 6, 50, 8), (3, 4, 3, 1), (2, 4, 2, 2), (3, 3, 9, 9)]
TAILS = ["renormalize", "bucket"]
TOLERANCE = {torch.float64: (1e-9, 1e-10), torch.float32: (2e-5, 2e-6)}


class Example:
    """Student logits, a teacher's top-k log-probs (shuffled order) and lengths."""

    def __init__(self, seed, batch, frames, classes, k, scale=2.0, temperature=1.0):
        rng = np.random.default_rng(seed)
        shape = (batch, frames, classes)
        self.student = np.float64(np.float32(scale * rng.standard_normal(shape)))
        self.lengths = oracles.random_lengths(rng, batch, 1, frames)
        self.values = np.zeros((batch, frames, k))
        self.ids = np.zeros((batch, frames, k), dtype=np.int64)
        for where in np.ndindex(batch, frames):
            logits = 2.0 * rng.standard_normal(classes)
            log_q = oracles.log_softmax(logits, temperature)
            kept = rng.permutation(oracles.topk_classes(log_q, k, keep=()))
            self.ids[where], self.values[where] = kept, log_q[kept]

    def nodes(self, tail, temperature=1.0, student=None, values=None):
        return oracles.essence_kd(
            self.student if student is None else student,
            self.values if values is None else values,
            self.ids,
            self.lengths,
            tail,
            temperature,
        )

    def tensors(self, dtype=torch.float64):
        return (
            torch.tensor(self.student, dtype=dtype),
            torch.tensor(self.values, dtype=dtype),
            torch.from_numpy(self.ids),
            torch.from_numpy(self.lengths),
        )


def assert_near(actual, target, dtype=torch.float64, scale=1.0):
    rtol, atol = TOLERANCE[dtype]
    actual = np.asarray(actual.detach().double())
    np.testing.assert_allclose(actual, target, rtol=rtol * scale, atol=atol * scale)


@pytest.mark.parametrize("tail", TAILS)
def test_the_reference_gradient_is_its_finite_difference(tail):
    example = Example(0, 2, 3, 5, 2)

    def value(student):
        nodes = example.nodes(tail, 2.0, student=student)
        return oracles.reduced(nodes, 2, "node")

    nodes = example.nodes(tail, 2.0)
    grad = oracles.reduced_grad(nodes, example.student.shape, "node")
    numeric = oracles.central_difference(value, example.student)
    np.testing.assert_allclose(grad, numeric, atol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(shape, tail, reduction, temperature):
    """In both precisions; the stored targets are not divided by the temperature."""
    example = Example(1, *shape)
    nodes = example.nodes(tail, temperature)
    upstream = np.linspace(-1.0, 2.0, shape[0]) if reduction == "none" else None
    grad = oracles.reduced_grad(nodes, example.student.shape, reduction, upstream)
    for dtype in (torch.float64, torch.float32):
        student, *rest = example.tensors(dtype)
        student.requires_grad_()
        loss = essence_kd(
            student, *rest, tail=tail, temperature=temperature, reduction=reduction
        )
        target = oracles.reduced(nodes, shape[0], reduction)
        assert loss.dtype == dtype and loss.shape == np.shape(target)
        assert_near(loss, target, dtype)
        if upstream is not None:
            loss = (loss * torch.tensor(upstream, dtype=dtype)).sum()
        loss.backward()
        assert_near(student.grad, grad, dtype)


def test_the_defaults():
    """tail "renormalize" is the default; temperature 1, sum over frames / B."""
    example = Example(2, 3, 4, 6, 3)
    target = oracles.reduced(example.nodes("renormalize"), 3, "batch")
    assert_near(essence_kd(*example.tensors()), target)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_gradcheck(k, tail):
    example = Example(3, 2, 3, 5, k)
    student, *rest = example.tensors()
    for reduction in ("none", "node"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: essence_kd(
                z, *rest, tail=tail, temperature=2.0, reduction=r
            ),
            (student.requires_grad_(),),
        )


@pytest.mark.parametrize("tail", TAILS)
def test_all_classes_kept_is_the_full_kl(tail):
    """K = V: both tails equal sum q (log q - log p) over all classes."""
    example = Example(4, 3, 5, 6, 6)
    nodes = []
    for b in range(3):
        for frame in range(example.lengths[b]):
            log_q = np.empty(6)
            log_q[example.ids[b, frame]] = example.values[b, frame]
            args = (example.student[b, frame], oracles.full_groups(6), log_q)
            value = oracles.grouped(*args)
            nodes.append(oracles.Node((b, frame), value, np.zeros(6)))
    loss = essence_kd(*example.tensors(), tail=tail, reduction="none")
    target = oracles.reduced(nodes, 3, "none")
    assert_near(loss, target)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("k", [2, 6])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_equals_its_teacher(temperature, k, scale):
    """With the bucket (or K = V): loss 0, gradient 0."""
    student = torch.tensor(Example(5, 3, 5, 6, k, scale).student)
    log_q = torch.log_softmax(student / temperature, -1)
    values, ids = log_q.topk(k)
    student.requires_grad_()
    lengths = torch.tensor([5, 2, 4])
    loss = essence_kd(
        student, values, ids, lengths, tail="bucket", temperature=temperature
    )
    loss.backward()
    assert abs(loss.item()) < 1e-11
    assert student.grad.abs().max() < 1e-11


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("garbage", [-7, 10**9])
def test_padding_changes_nothing(garbage, poison, tail):
    example = Example(6, 4, 6, 8, 3)
    nodes = example.nodes(tail)
    student, values, ids, lengths = example.tensors()
    padding = torch.arange(6) >= lengths[:, None]
    student[padding] = values[padding] = poison
    ids[padding] = garbage
    student.requires_grad_()
    for reduction in ("batch", "node", "none"):
        student.grad = None
        args = (student, values, ids, lengths)
        loss = essence_kd(*args, tail=tail, reduction=reduction)
        assert_near(loss, oracles.reduced(nodes, 4, reduction))
        loss.sum().backward()
        target = oracles.reduced_grad(nodes, student.shape, reduction)
        assert_near(student.grad, target)
        assert (student.grad[padding] == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_another_order_changes_nothing(tail):
    """Of the utterances, and of the K kept classes."""
    example = Example(7, 4, 5, 9, 4)
    student, values, ids, lengths = example.tensors()
    order, swap = [3, 1, 0, 2], [2, 0, 3, 1]
    loss = essence_kd(
        student[order],
        values[order][..., swap],
        ids[order][..., swap],
        lengths[order],
        tail=tail,
        reduction="none",
    )
    target = oracles.reduced(example.nodes(tail), 4, "none")
    assert_near(loss, target[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("scale", [8.0, 25.0, 1e4])
def test_peaky_and_extreme_student(scale, tail, dtype):
    """Classes and a tail with hardly any mass in the student: finite and correct."""
    example = Example(8, 3, 5, 8, 3)
    student = np.float64(np.float32(scale * example.student))
    nodes = example.nodes(tail, student=student)
    logits = torch.tensor(student, dtype=dtype, requires_grad=True)
    loss = essence_kd(logits, *example.tensors(dtype)[1:], tail=tail, reduction="none")
    assert torch.isfinite(loss).all()
    assert_near(loss, oracles.reduced(nodes, 3, "none"), dtype, scale=5.0)
    loss.sum().backward()
    target = oracles.reduced_grad(nodes, student.shape, "none")
    assert_near(logits.grad, target, dtype, scale=5.0)


@pytest.mark.parametrize("k", [2, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_teacher(dtype, k):
    """Stored log-probs of 0 and of about -10000: no NaN, and correct."""
    example = Example(9, 3, 5, 8, k)
    values = np.float64(np.float32(1e4 * example.values))
    values -= values.max(axis=-1, keepdims=True)
    student, _, *rest = example.tensors(dtype)
    for tail in TAILS:
        student.grad = None
        student.requires_grad_()
        stored = torch.tensor(values, dtype=dtype)
        loss = essence_kd(student, stored, *rest, tail=tail, reduction="none")
        nodes = example.nodes(tail, values=values)
        assert_near(loss, oracles.reduced(nodes, 3, "none"), dtype)
        loss.sum().backward()
        target = oracles.reduced_grad(nodes, student.shape, "none")
        assert_near(student.grad, target, dtype)


def test_stored_in_half_precision():
    """fp16 log-probs may sum to more than 1: the tail is then empty, not NaN.

    Here they sum to 1.001; whether that excess is normalised away is left open.
    """
    student = torch.tensor([[[0.3, -0.2, 1.0, 0.1]]], requires_grad=True)
    values = torch.tensor([[[math.log(0.7), math.log(0.301)]]]).half()
    ids, lengths = torch.tensor([[[2, 0]]]), torch.tensor([1])
    loss = essence_kd(student, values, ids, lengths, tail="bucket")
    assert loss.dtype == torch.float32
    loss.backward()
    exact = np.asarray(values.double())
    args = (
        np.float64(student.detach().numpy()),
        exact,
        ids.numpy(),
        [1],
        "bucket",
        1.0,
    )
    nodes = oracles.essence_kd(*args)
    assert loss.item() == pytest.approx(nodes[0].value, abs=3e-3)
    np.testing.assert_allclose(student.grad[0, 0], nodes[0].grad, atol=3e-3)


@pytest.mark.parametrize("tail", TAILS)
def test_the_teacher_receives_no_gradient(tail):
    example = Example(10, 3, 4, 6, 3)
    student, values, *rest = example.tensors()
    student.requires_grad_()
    values.requires_grad_()
    essence_kd(student, values, *rest, tail=tail).backward()
    assert values.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tail", TAILS)
def test_half_precision_is_computed_in_float32(tail, dtype):
    example = Example(11, 3, 5, 20, 4)
    student, values, *rest = example.tensors(torch.float32)
    student = student.to(dtype)
    nodes = example.nodes(tail, 2.0, student=np.asarray(student.double()))
    student.requires_grad_()
    loss = essence_kd(student, values, *rest, tail=tail, temperature=2.0)
    assert loss.dtype == torch.float32
    assert_near(loss, oracles.reduced(nodes, 3, "batch"), torch.float32)
    loss.backward()
    assert student.grad.dtype == dtype


@pytest.mark.parametrize("tail", TAILS)
def test_autocast_changes_nothing(tail):
    example = Example(12, 3, 5, 20, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = essence_kd(*example.tensors(torch.float32), tail=tail)
    target = oracles.reduced(example.nodes(tail), 3, "batch")
    assert_near(loss, target, torch.float32)


# ------------------------------------------------------------------- top-k targets


@pytest.mark.parametrize("keep", [(0,), (), (5,), (0, 3)])
@pytest.mark.parametrize("k", [2, 3, 8])
def test_topk_targets(k, keep):
    """The kept classes and the best others, with their log-probs untouched."""
    rng = np.random.default_rng(k)
    log_probs = np.empty((3, 4, 8))
    for where in np.ndindex(3, 4):
        log_probs[where] = oracles.log_softmax(2.0 * rng.standard_normal(8))
    values, ids = topk_targets(torch.from_numpy(log_probs), k, keep=keep)
    assert values.shape == ids.shape == (3, 4, k)
    assert ids.dtype == torch.int64
    for where in np.ndindex(3, 4):
        target = oracles.topk_classes(log_probs[where], k, keep)
        assert sorted(ids[where].tolist()) == target
        assert values[where].tolist() == log_probs[where][ids[where].numpy()].tolist()


def test_topk_targets_keeps_blank_by_default():
    """Even where blank is the least likely class of all."""
    log_probs = torch.log_softmax(torch.tensor([[-30.0, 1.0, 2.0, 3.0, 0.0]]), -1)
    values, ids = topk_targets(log_probs, 3)
    assert sorted(ids[0].tolist()) == [0, 2, 3]
    assert values[0, ids[0] == 0].item() == log_probs[0, 0].item()
    assert topk_targets(log_probs, 1)[1].tolist() == [[0]]


def test_topk_targets_of_ties():
    """Equal log-probs: k different classes, the kept ones among them."""
    log_probs = torch.full((2, 3, 6), -math.log(6.0))
    _, ids = topk_targets(log_probs, 4, keep=(5, 2))
    for row in ids.reshape(-1, 4).tolist():
        assert len(set(row)) == 4 and {5, 2} <= set(row)


# ------------------------------------------------------------------------- ensemble


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [1.0, 0.0]])
@pytest.mark.parametrize("scale", [2.0, 40.0])
def test_ensemble_logits(scale, weights, temperature, dtype):
    """softmax(z / T) = sum_m w_m softmax(z_m / T), the mean of posteriors."""
    rng = np.random.default_rng(len(weights))
    members = [
        np.float64(np.float32(scale * rng.standard_normal((2, 3, 7)))) for _ in weights
    ]
    target = oracles.ensemble_log_probs(members, weights, temperature)
    inputs = [torch.tensor(member, dtype=dtype) for member in members]
    logits = ensemble_logits(inputs, weights, temperature)
    assert logits.dtype == dtype and logits.shape == (2, 3, 7)
    log_probs = torch.log_softmax(logits.double() / temperature, -1)
    rtol, atol = TOLERANCE[dtype]
    np.testing.assert_allclose(
        log_probs.numpy(),
        target,
        rtol=rtol,
        atol=max(atol, 1e-6 * (dtype != torch.float64)),
    )


def test_ensemble_logits_stay_finite():
    """Members that are confident of different classes, tens of thousands apart."""
    one = torch.zeros(1, 3)
    other = torch.zeros(1, 3)
    one[0, 0], other[0, 1] = 1e4, 1e4
    logits = ensemble_logits([one, other], [0.25, 0.75], 1.0)
    assert torch.isfinite(logits).all()
    np.testing.assert_allclose(
        torch.softmax(logits, -1), [[0.25, 0.75, 0.0]], atol=1e-6
    )


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_essence_of_an_ensemble(temperature, tail):
    """Papers C.1 in one piece: mean posterior, its top-k with blank, the loss."""
    rng = np.random.default_rng(13)
    members = [2.0 * rng.standard_normal((2, 4, 9)) for _ in range(3)]
    weights = [0.5, 0.3, 0.2]
    student = 2.0 * rng.standard_normal((2, 4, 9))
    lengths = np.array([4, 2])
    log_q = oracles.ensemble_log_probs(members, weights, temperature)
    kept = np.array([[oracles.topk_classes(row, 4, (0,)) for row in b] for b in log_q])
    values = np.take_along_axis(log_q, kept, axis=-1)
    nodes = oracles.essence_kd(student, values, kept, lengths, tail, temperature)
    mean = ensemble_logits([torch.from_numpy(m) for m in members], weights, temperature)
    targets = topk_targets(torch.log_softmax(mean / temperature, -1), 4)
    loss = essence_kd(
        torch.from_numpy(student),
        *targets,
        torch.from_numpy(lengths),
        tail=tail,
        temperature=temperature,
    )
    assert_near(loss, oracles.reduced(nodes, 2, "batch"))
