"""What reading a lattice in chunks must not do, or must not hide."""

import gc
import weakref

import pytest
import torch

from espnet_kd.lattice import best_path, transducer_loss
from espnet_kd.lattice.nodes import make_layout
from espnet_kd.losses import (
    FactoredLogits,
    LatticeTerm,
    OnlineTeacher,
    collapsed_lattice_kd,
    lattice_losses,
    path_kd,
    transducer_kd,
    windowed_losses,
)

FRAMES, LABELS = torch.tensor([6, 4]), torch.tensor([3, 2])
IDS = torch.tensor([[1, 2, 3], [4, 1, -1]])
LATTICE = (IDS, FRAMES, LABELS)


def joint(frames: int = 6, seed: int = 0) -> FactoredLogits:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, frames, 5), (2, 4, 5), (7, 5), (7,)]
    tensors = [torch.randn(*shape, generator=draw).double() for shape in shapes]
    return FactoredLogits(*(x.requires_grad_() for x in tensors))


@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("loss", ["collapsed", "full", "topk", "path", "path_kd"])
def test_a_teacher_without_the_frames_is_refused(form: str, loss: str) -> None:
    student, teacher = joint(), joint(frames=5, seed=1)
    teacher = teacher.dense() if form == "dense" else teacher
    path, lengths, _ = best_path(student, *LATTICE)
    with pytest.raises(ValueError, match="teacher: has 5 frames, but frame 5"):
        if loss == "path_kd":
            path_kd(student, teacher, path, lengths)
        elif loss == "path":
            transducer_kd(student, teacher, *LATTICE, path=path)
        else:
            transducer_kd(student, teacher, *LATTICE, classes=loss)
    # frames without a comparison may be missing
    shorter = (IDS, FRAMES.clamp(max=5), LABELS)
    transducer_kd(student, teacher, *shorter)
    transducer_kd(student, teacher, *LATTICE, shift=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_nan_gradient_stays_visible(bad, tolerance) -> None:
    student = joint()
    loss, kd = transducer_kd(
        student, joint(seed=1), *LATTICE, reduction="none", tolerance=tolerance
    )
    total = (loss * torch.tensor([1.0, bad])).sum() + kd.sum()
    gradients = torch.autograd.grad(total, student.tensors)
    assert not all(x.isfinite().all() for x in gradients)


def test_a_windowed_loss_does_not_hide_nan() -> None:
    student, layout = joint(), make_layout(joint(), *LATTICE)
    nodes = torch.zeros_like(layout.nodes)
    nodes[0, 2, 1] = True
    term = LatticeTerm(OnlineTeacher([joint(seed=1)]), nodes, shift=1)
    with torch.no_grad():
        student.encoder[0, 2:4] = torch.nan
    sums, count = windowed_losses(student, layout, term, 2)
    assert sums[0].isnan() and count == 1


def test_without_losses_nothing_is_read() -> None:
    layout = make_layout(joint(), *LATTICE)
    assert lattice_losses(joint(), layout, [], with_transducer=False) == (None, [])


def test_a_default_path_length_fits_the_modified_topology() -> None:
    student, teacher = joint(), joint(seed=1)
    path, lengths, _ = best_path(teacher, *LATTICE, topology="modified")
    given = dict(path=path, topology="modified")
    expected = transducer_kd(student, teacher, *LATTICE, path_lengths=lengths, **given)
    assert transducer_kd(student, teacher, *LATTICE, **given) == expected


def test_an_activation_with_parameters_is_refused() -> None:
    tensors = joint().tensors
    FactoredLogits(*tensors, torch.nn.Hardtanh())
    with pytest.raises(ValueError, match="activation: PReLU"):
        FactoredLogits(*tensors, torch.nn.PReLU())


def test_a_change_between_the_passes_is_refused() -> None:
    student = joint()
    loss = transducer_loss(student, *LATTICE).sum()
    with torch.no_grad():
        student.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_backward_pass_frees_the_lattice() -> None:
    """A trainer keeps the loss while it computes the next one."""
    encoder, *others = joint().tensors
    encoder = encoder * 1.0
    alive = weakref.ref(encoder)
    loss = collapsed_lattice_kd(
        FactoredLogits(encoder, *others), joint(seed=1), *LATTICE
    )
    del encoder
    gc.disable()
    try:
        assert alive() is not None
        loss.backward()
        assert alive() is None
    finally:
        gc.enable()


def test_a_gradient_of_a_gradient_is_refused() -> None:
    student = joint()
    loss = transducer_loss(student, *LATTICE).sum()
    (gradient,) = torch.autograd.grad(loss, student.weight, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_lattices_compare_by_identity() -> None:
    lattice = joint()
    assert lattice == lattice and lattice != joint() and hash(lattice)
