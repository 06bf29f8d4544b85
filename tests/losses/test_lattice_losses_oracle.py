"""collapsed_lattice_kd and full_lattice_kd against the naive loops of tests.oracles."""

import math

import numpy as np
import pytest
import torch

from espnet_kd.losses import collapsed_lattice_kd, full_lattice_kd
from tests import oracles
from tests.oracles import random_lattices

LOSSES = {
    "collapsed": (collapsed_lattice_kd, oracles.collapsed_groups),
    "full": (full_lattice_kd, oracles.full_groups),
}
# (B, T, U, V, blank, temperature)
CASES = [
    (3, 5, 3, 7, 0, 1.0),
    (4, 4, 2, 3, 2, 2.0),
    (2, 6, 4, 50, 17, 2.0),
    (3, 3, 2, 2, 1, 1.0),
    (2, 4, 3, 2, 0, 2.0),
    (2, 3, 0, 5, 0, 1.0),
    (1, 1, 0, 2, 0, 2.0),
    (2, 9, 5, 31, 30, 1.0),
]
TOLERANCE = {torch.float64: (1e-9, 1e-10), torch.float32: (2e-5, 2e-6)}

pytestmark = pytest.mark.parametrize("kind", ["collapsed", "full"])


def tensors(batch, dtype=torch.float64):
    return (
        torch.tensor(batch.student, dtype=dtype),
        torch.tensor(batch.teacher, dtype=dtype),
        torch.from_numpy(batch.labels),
        torch.from_numpy(batch.logit_lengths),
        torch.from_numpy(batch.label_lengths),
    )


def oracle_nodes(kind, batch, temperature=1.0, student=None, teacher=None):
    return oracles.lattice_kd(
        batch.student if student is None else student,
        batch.teacher if teacher is None else teacher,
        batch.labels,
        batch.logit_lengths,
        batch.label_lengths,
        LOSSES[kind][1],
        batch.blank,
        temperature,
    )


def assert_near(actual, target, dtype=torch.float64, scale=1.0):
    rtol, atol = TOLERANCE[dtype]
    actual = np.asarray(actual.detach().double())
    np.testing.assert_allclose(actual, target, rtol=rtol * scale, atol=atol * scale)


def backward(loss, upstream=None):
    """Backward through (B,) losses weighed by `upstream`, or through a scalar."""
    if upstream is not None:
        loss = (loss * torch.tensor(upstream, dtype=loss.dtype)).sum()
    loss.backward()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_reference_gradient_is_its_finite_difference(temperature, kind):
    batch = random_lattices(0, 2, 2, 1, 4, blank=1)

    def value(student):
        nodes = oracle_nodes(kind, batch, temperature, student=student)
        return oracles.reduced(nodes, 2, "batch")

    nodes = oracle_nodes(kind, batch, temperature)
    grad = oracles.reduced_grad(nodes, batch.student.shape, "batch")
    numeric = oracles.central_difference(value, batch.student)
    np.testing.assert_allclose(grad, numeric, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient(case, reduction, dtype, kind):
    *shape, temperature = case
    batch = random_lattices(1, *shape, dtype=np.float32)
    nodes = oracle_nodes(kind, batch, temperature)
    student, *rest = tensors(batch, dtype)
    student.requires_grad_()
    loss = LOSSES[kind][0](
        student,
        *rest,
        blank=batch.blank,
        temperature=temperature,
        reduction=reduction,
    )
    target = oracles.reduced(nodes, case[0], reduction)
    assert loss.dtype == dtype and loss.shape == np.shape(target)
    assert_near(loss, target, dtype)
    upstream = np.linspace(-1.0, 2.0, case[0]) if reduction == "none" else None
    backward(loss, upstream)
    target = oracles.reduced_grad(nodes, batch.student.shape, reduction, upstream)
    assert_near(student.grad, target, dtype)


def test_the_defaults(kind):
    """blank 0, temperature 1, sum over nodes / B."""
    batch = random_lattices(2, 3, 4, 2, 5)
    target = oracles.reduced(oracle_nodes(kind, batch), 3, "batch")
    assert_near(LOSSES[kind][0](*tensors(batch)), target)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_gradcheck(classes, temperature, kind):
    batch = random_lattices(3, 2, 3, 2, classes, blank=1)
    student, *rest = tensors(batch)
    for reduction in ("none", "node"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: LOSSES[kind][0](
                z, *rest, blank=1, temperature=temperature, reduction=r
            ),
            (student.requires_grad_(),),
        )


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_that_equals_its_teacher(dtype, scale, kind):
    """Loss 0 and gradient 0."""
    batch = random_lattices(4, 3, 5, 3, 6, scale=scale)
    student, _, *rest = tensors(batch, dtype)
    teacher = student.clone()
    student.requires_grad_()
    loss = LOSSES[kind][0](student, teacher, *rest, reduction="none")
    loss.sum().backward()
    limit = {torch.float64: 1e-12, torch.float32: 2e-5}[dtype]
    assert loss.detach().abs().max() <= limit
    assert student.grad.abs().max() <= limit


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("label", [-1, 10**9])
def test_padding_changes_nothing(poison, label, kind):
    batch = random_lattices(5, 4, 5, 3, 6, blank=2)
    nodes = oracle_nodes(kind, batch)
    bad = batch.poisoned(poison, label)
    for reduction in ("batch", "node", "none"):
        student, *rest = tensors(bad)
        student.requires_grad_()
        loss = LOSSES[kind][0](student, *rest, blank=2, reduction=reduction)
        assert_near(loss, oracles.reduced(nodes, 4, reduction))
        loss.sum().backward()
        target = oracles.reduced_grad(nodes, batch.student.shape, reduction)
        assert_near(student.grad, target)
        assert (student.grad[torch.from_numpy(batch.padding())] == 0).all()


def test_more_padding_and_another_order_change_nothing(kind):
    batch = random_lattices(6, 4, 5, 3, 6)
    student, teacher, labels, frames, counts = tensors(batch)
    order = [2, 0, 3, 1]

    def widened(logits):
        wide = torch.full((4, 8, 6, 6), math.nan, dtype=torch.float64)
        wide[:, :5, :4] = logits
        return wide[order]

    wide_labels = torch.full((4, 5), -1)
    wide_labels[:, :3] = labels
    moved = (wide_labels[order], frames[order], counts[order])
    loss = LOSSES[kind][0](widened(student), widened(teacher), *moved, reduction="none")
    target = oracles.reduced(oracle_nodes(kind, batch), 4, "none")
    assert_near(loss, target[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [8.0, 25.0])
def test_peaky_student(scale, dtype, kind):
    """Confident models: the rest has e^-20 in the student and not in the teacher.

    Its log must still be exact; 1 - p(y) - p(blank) would round to 0.
    """
    batch = random_lattices(7, 3, 5, 3, 8, scale=1.0, dtype=np.float32)
    student = (scale * batch.student).astype(np.float32).astype(np.float64)
    nodes = oracle_nodes(kind, batch, student=student)
    logits = torch.tensor(student, dtype=dtype, requires_grad=True)
    loss = LOSSES[kind][0](logits, *tensors(batch, dtype)[1:], reduction="none")
    assert_near(loss, oracles.reduced(nodes, 3, "none"), dtype, scale=5.0)
    loss.sum().backward()
    target = oracles.reduced_grad(nodes, student.shape, "none")
    assert_near(logits.grad, target, dtype, scale=5.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_extreme_logits(temperature, dtype, kind):
    """Opposed logits of about 10000 on both sides: finite and correct."""
    batch = random_lattices(8, 3, 5, 3, 6, scale=1e4, dtype=np.float32)
    for teacher in (batch.teacher, -batch.student, 1e-4 * batch.teacher):
        teacher = teacher.astype(np.float32).astype(np.float64)
        nodes = oracle_nodes(kind, batch, temperature, teacher=teacher)
        student, _, *rest = tensors(batch, dtype)
        student.requires_grad_()
        loss = LOSSES[kind][0](
            student,
            torch.tensor(teacher, dtype=dtype),
            *rest,
            temperature=temperature,
            reduction="none",
        )
        assert torch.isfinite(loss).all()
        target = oracles.reduced(nodes, 3, "none")
        np.testing.assert_allclose(loss.detach().numpy(), target, rtol=1e-5)
        loss.sum().backward()
        assert torch.isfinite(student.grad).all()
        target = oracles.reduced_grad(nodes, batch.student.shape, "none")
        np.testing.assert_allclose(student.grad, target, rtol=1e-4, atol=1e-5)


def test_the_teacher_receives_no_gradient(kind):
    batch = random_lattices(9, 3, 4, 2, 5)
    student, teacher, *rest = tensors(batch)
    student.requires_grad_()
    teacher.requires_grad_()
    LOSSES[kind][0](student, teacher, *rest).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, kind):
    batch = random_lattices(10, 3, 5, 3, 12)
    student, teacher, *rest = tensors(batch, dtype)
    rounded = (np.asarray(student.double()), np.asarray(teacher.double()))
    student.requires_grad_()
    loss = LOSSES[kind][0](student, teacher, *rest, temperature=2.0)
    nodes = oracle_nodes(kind, batch, 2.0, *rounded)
    assert loss.dtype == torch.float32
    assert_near(loss, oracles.reduced(nodes, 3, "batch"), torch.float32)
    loss.backward()
    assert student.grad.dtype == dtype
    target = oracles.reduced_grad(nodes, batch.student.shape, "batch")
    np.testing.assert_allclose(student.grad.double(), target, rtol=1e-2, atol=1e-4)


def test_autocast_changes_nothing(kind):
    batch = random_lattices(11, 3, 6, 4, 20, dtype=np.float32)
    student, *rest = tensors(batch, torch.float32)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[kind][0](student, *rest)
    nodes = oracle_nodes(kind, batch)
    assert_near(loss, oracles.reduced(nodes, 3, "batch"), torch.float32)
    loss.backward()
    target = oracles.reduced_grad(nodes, batch.student.shape, "batch")
    assert_near(student.grad, target, torch.float32)


def test_int32_labels_and_lengths(kind):
    batch = random_lattices(12, 3, 4, 3, 5)
    student, teacher, *rest = tensors(batch)
    narrow = [one.to(torch.int32) for one in rest]
    target = oracles.reduced(oracle_nodes(kind, batch), 3, "batch")
    assert_near(LOSSES[kind][0](student, teacher, *narrow), target)


def test_two_classes_are_label_and_blank(kind):
    """With V = {blank, label} nothing is left to collapse: both losses are one."""
    batch = random_lattices(13, 3, 5, 3, 2)
    both = [oracles.reduced(oracle_nodes(name, batch), 3, "none") for name in LOSSES]
    np.testing.assert_allclose(*both, rtol=1e-12)
    loss = LOSSES[kind][0](*tensors(batch), reduction="none")
    assert_near(loss, both[0])
