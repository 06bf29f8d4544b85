"""path_kd against a loop over the nodes of random alignments."""

import math

import numpy as np
import pytest
import torch

from espnet_kd.losses import full_lattice_kd, path_kd
from tests import oracles

SHIFTS = [-2, -1, 0, 1, 3]
# (B, student T, teacher T, U, V)
SHAPES = [(3, 6, 6, 3, 7), (4, 5, 8, 2, 3), (3, 9, 6, 4, 50), (2, 4, 4, 0, 2)]
TOLERANCE = {torch.float64: (1e-9, 1e-10), torch.float32: (2e-5, 2e-6)}


class Example:
    """A batch: student, teacher, path, path_lengths and the student's lengths."""

    def __init__(self, seed, batch, frames, teacher_frames, labels, classes):
        rng = np.random.default_rng(seed)

        def logits(count):
            shape = (batch, count, labels + 1, classes)
            return np.float64(np.float32(2.0 * rng.standard_normal(shape)))

        self.student, self.teacher = logits(frames), logits(teacher_frames)
        self.student_lengths = oracles.random_lengths(rng, batch, 2, frames)
        self.teacher_lengths = oracles.random_lengths(rng, batch, 1, teacher_frames)
        self.label_lengths = oracles.random_lengths(rng, batch, 0, labels)
        self.path_lengths = self.teacher_lengths + self.label_lengths
        self.path = np.zeros((batch, self.path_lengths.max(), 2), dtype=np.int64)
        for b, size in enumerate(self.path_lengths):
            args = (rng, self.teacher_lengths[b], self.label_lengths[b])
            self.path[b, :size] = oracles.random_alignment_nodes(*args)

    def nodes(self, shift=0, use_lengths=False, temperature=1.0, **other):
        return oracles.path_kd(
            other.get("student", self.student),
            other.get("teacher", self.teacher),
            self.path,
            self.path_lengths,
            shift,
            self.student_lengths if use_lengths else None,
            temperature,
        )

    def tensors(self, dtype=torch.float64):
        return (
            torch.tensor(self.student, dtype=dtype),
            torch.tensor(self.teacher, dtype=dtype),
            torch.from_numpy(self.path),
            torch.from_numpy(self.path_lengths),
        )

    def lengths(self, use_lengths):
        return torch.from_numpy(self.student_lengths) if use_lengths else None


def assert_near(actual, correct, dtype=torch.float64):
    rtol, atol = TOLERANCE[dtype]
    actual = np.asarray(actual.detach().double())
    np.testing.assert_allclose(actual, correct, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_the_reference_gradient_is_its_finite_difference(shift):
    example = Example(0, 2, 3, 4, 1, 3)

    def value(student):
        nodes = example.nodes(shift, True, 2.0, student=student)
        return oracles.reduced(nodes, 2, "node")

    nodes = example.nodes(shift, True, 2.0)
    grad = oracles.reduced_grad(nodes, example.student.shape, "node")
    numeric = oracles.central_difference(value, example.student)
    np.testing.assert_allclose(grad, numeric, atol=1e-8)


@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
@pytest.mark.parametrize("use_lengths", [False, True])
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(shape, shift, use_lengths, reduction):
    """In both precisions; dropped nodes are not counted by reduction "node"."""
    example = Example(1, *shape)
    temperature = 2.0 if shift % 2 else 1.0
    nodes = example.nodes(shift, use_lengths, temperature)
    upstream = np.linspace(-1.0, 2.0, shape[0]) if reduction == "none" else None
    grad = oracles.reduced_grad(nodes, example.student.shape, reduction, upstream)
    for dtype in (torch.float64, torch.float32):
        student, *rest = example.tensors(dtype)
        student.requires_grad_()
        loss = path_kd(
            student,
            *rest,
            shift=shift,
            student_lengths=example.lengths(use_lengths),
            temperature=temperature,
            reduction=reduction,
        )
        correct = oracles.reduced(nodes, shape[0], reduction)
        assert loss.dtype == dtype and loss.shape == np.shape(correct)
        assert_near(loss, correct, dtype)
        if upstream is not None:
            loss = (loss * torch.tensor(upstream, dtype=dtype)).sum()
        loss.backward()
        assert_near(student.grad, grad, dtype)


def test_the_defaults():
    """No shift, all frames of the student, temperature 1, sum over nodes / B."""
    example = Example(2, 3, 5, 5, 2, 4)
    correct = oracles.reduced(example.nodes(), 3, "batch")
    assert_near(path_kd(*example.tensors()), correct)


@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_gradcheck(shift):
    example = Example(3, 2, 4, 3, 2, 3)
    student, *rest = example.tensors()
    for reduction in ("none", "node"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: path_kd(
                z,
                *rest,
                shift=shift,
                student_lengths=example.lengths(True),
                temperature=2.0,
                reduction=r,
            ),
            (student.requires_grad_(),),
        )


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_a_rolled_student(shift):
    """A student that is late by `shift` frames matches its teacher exactly."""
    example = Example(4, 3, 6, 6, 3, 5)
    teacher = torch.tensor(example.teacher)
    student = torch.roll(teacher, shift, dims=1).requires_grad_()
    loss = path_kd(student, *example.tensors()[1:], shift=shift, reduction="none")
    loss.sum().backward()
    assert loss.detach().abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
@pytest.mark.parametrize("shift", [-50, 50])
def test_a_shift_beyond_the_student_leaves_nothing(shift, reduction):
    example = Example(5, 3, 5, 5, 2, 4)
    student, *rest = example.tensors()
    student.requires_grad_()
    loss = path_kd(student, *rest, shift=shift, reduction=reduction)
    assert (loss == 0).all()
    loss.sum().backward()
    assert (student.grad == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("garbage", [-7, 10**9])
@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_padding_changes_nothing(shift, garbage, poison):
    """Padded frames and rows, and the path past its length, hold garbage."""
    example = Example(6, 4, 6, 7, 3, 5)
    nodes = example.nodes(shift, True)
    student, teacher, path, lengths = example.tensors()
    padding = torch.ones(student.shape[:3], dtype=torch.bool)
    for b in range(4):
        frames, rows = example.student_lengths[b], example.label_lengths[b] + 1
        padding[b, :frames, :rows] = False
        teacher[b, example.teacher_lengths[b] :] = poison
        teacher[b, :, rows:] = poison
        path[b, lengths[b] :] = garbage
    student[padding] = poison
    student.requires_grad_()
    for reduction in ("batch", "node", "none"):
        student.grad = None
        loss = path_kd(
            student,
            teacher,
            path,
            lengths,
            shift=shift,
            student_lengths=example.lengths(True),
            reduction=reduction,
        )
        assert_near(loss, oracles.reduced(nodes, 4, reduction))
        loss.sum().backward()
        correct = oracles.reduced_grad(nodes, student.shape, reduction)
        assert_near(student.grad, correct)
        assert (student.grad[padding] == 0).all()


def test_nodes_off_the_path_do_not_matter():
    """Only T + U nodes of the lattice are read; the others get exactly zero."""
    example = Example(7, 3, 6, 6, 3, 5)
    nodes = example.nodes()
    student, *rest = example.tensors()
    off = torch.ones(student.shape[:3], dtype=torch.bool)
    for node in nodes:
        off[node.where] = False
    student.requires_grad_()
    path_kd(student, *rest).backward()
    assert (student.grad[off] == 0).all()
    assert (student.grad[~off].abs().sum(-1) > 0).all()


def test_more_padding_and_another_order_change_nothing():
    example = Example(8, 4, 6, 5, 3, 5)
    student, teacher, path, lengths = example.tensors()
    order = [3, 1, 0, 2]
    wide_path = torch.full((4, path.shape[1] + 3, 2), -9)
    wide_path[:, : path.shape[1]] = path

    def widened(logits, frames):
        wide = torch.full((4, 8, 6, 5), math.nan, dtype=torch.float64)
        wide[:, :frames, :4] = logits
        return wide[order]

    loss = path_kd(
        widened(student, 6),
        widened(teacher, 5),
        wide_path[order],
        lengths[order],
        student_lengths=torch.full((4,), 6),
        reduction="none",
    )
    correct = oracles.reduced(example.nodes(), 4, "none")
    assert_near(loss, correct[order])


def test_the_teacher_receives_no_gradient():
    example = Example(9, 3, 5, 5, 2, 4)
    student, teacher, *rest = example.tensors()
    student.requires_grad_()
    teacher.requires_grad_()
    path_kd(student, teacher, *rest, shift=1).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [12.0, 1e4])
def test_extreme_logits(scale, dtype):
    example = Example(10, 3, 6, 6, 3, 6)
    student = np.float64(np.float32(scale * example.student))
    for teacher in (example.teacher, -student, np.roll(student, 1, axis=-1)):
        nodes = example.nodes(student=student, teacher=teacher)
        logits = torch.tensor(student, dtype=dtype, requires_grad=True)
        rest = example.tensors()[2:]
        target = torch.tensor(teacher, dtype=dtype)
        loss = path_kd(logits, target, *rest, reduction="none")
        correct = oracles.reduced(nodes, 3, "none")
        np.testing.assert_allclose(loss.detach().numpy(), correct, rtol=1e-5)
        loss.sum().backward()
        correct = oracles.reduced_grad(nodes, student.shape, "none")
        np.testing.assert_allclose(logits.grad, correct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    example = Example(11, 3, 6, 6, 3, 12)
    student, teacher, *rest = example.tensors(dtype)
    nodes = example.nodes(
        1, student=np.asarray(student.double()), teacher=np.asarray(teacher.double())
    )
    student.requires_grad_()
    loss = path_kd(student, teacher, *rest, shift=1)
    assert loss.dtype == torch.float32
    assert_near(loss, oracles.reduced(nodes, 3, "batch"), torch.float32)
    loss.backward()
    assert student.grad.dtype == dtype


def test_autocast_changes_nothing():
    example = Example(12, 3, 6, 6, 3, 20)
    student, *rest = example.tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = path_kd(student, *rest)
    correct = oracles.reduced(example.nodes(), 3, "batch")
    assert_near(loss, correct, torch.float32)


def test_without_labels_the_path_is_the_lattice():
    """U = 0: the only alignment visits every node, so the two losses are one."""
    example = Example(13, 3, 5, 5, 0, 6)
    student, teacher, path, lengths = example.tensors()
    empty = torch.zeros(3, 0, dtype=torch.int64)
    counts = torch.zeros(3, dtype=torch.int64)
    for reduction in ("batch", "node", "none"):
        lattice = full_lattice_kd(
            student, teacher, empty, lengths, counts, reduction=reduction
        )
        loss = path_kd(student, teacher, path, lengths, reduction=reduction)
        assert_near(loss, oracles.reduced(example.nodes(), 3, reduction))
        assert_near(lattice, loss.numpy())
