"""reverse_kl and jsd against naive loops: all kinds of nodes and all class sets."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from espnet_kd.lattice.nodes import make_layout
from espnet_kd.losses import (
    Collapsed,
    Divergence,
    Full,
    LatticeTerm,
    OnlineSteps,
    OnlineTeacher,
    StoredSteps,
    TopK,
    collapsed_lattice_kd,
    divergence_of,
    essence_kd,
    full_lattice_kd,
    full_sum_kd,
    path_kd,
    steps_kd,
    transducer_kd,
    windowed_losses,
)
from tests import oracles
from tests.losses.grid import (
    CLASSES,
    FORMS,
    NODES,
    SIDES,
    assert_results,
    lattice_args,
    oracle_results,
    run,
    side,
)
from tests.oracles import random_case

NAMES = ["reverse_kl", "jsd"]
# reverse_kl is infinite where the teacher gives no mass
CELLS = [
    (name, *cell)
    for name in NAMES
    for cell in CLASSES
    if (name, cell[1]) != ("reverse_kl", "renormalize")
]
RESULT = dict(rtol=1e-8, atol=1e-9)


def joints(case, form):
    return (side(case, which, form) for which in ("student", "teacher"))


# ------------------------------------------------------------ on lattices


@pytest.mark.parametrize("forms", SIDES, ids=str)
@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("name, classes, tail", CELLS)
def test_transducer_kd(name, classes, tail, nodes, forms):
    for seed in range(2):
        case = random_case(seed, nodes, classes, tail, divergence=name)
        assert_results(run(case, forms), oracle_results(case, forms[0]), **RESULT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "nodes, classes",
    [("lattice", "collapsed"), ("lattice", "full"), ("path shifted", "full")],
)
def test_the_named_losses(nodes, classes, name, form):
    case = random_case(3, nodes, classes, divergence=name, weighted=False)
    (student, leaves), (teacher, _) = joints(case, form)
    made = dict(divergence=name, temperature=case.temperature, reduction="batch")
    args, blank = lattice_args(case), {"blank": case.batch.blank}
    if case.path is None:
        loss = {"collapsed": collapsed_lattice_kd, "full": full_lattice_kd}[classes]
        kd = loss(student, teacher, *args, **blank, **made)
    else:
        where = (torch.from_numpy(x) for x in (case.path, case.path_lengths))
        made |= dict(shift=case.shift, student_lengths=args[1])
        kd = path_kd(student, teacher, *where, **made)
    kd.backward()
    case = replace(case, reduction="batch")
    value, grad = case.kd()[0], case.student_grad(0.0, 1.0)
    grads = {"logits": grad} if form == "dense" else case.student.backward(grad)
    np.testing.assert_allclose(kd.item(), value, rtol=1e-9)
    for part, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad, grads[part], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name, classes, tail", CELLS)
def test_a_window_takes_the_least(name, classes, tail, form):
    """Of each node the least over its shifts, and the gradient where that is."""
    case = random_case(
        5, "lattice", classes, tail, divergence=name, weighted=False,
        reduction="none", size=(2, 5, 2),
    )  # fmt: skip
    best = {}
    for shift in (-1, 0, 1):
        for node in replace(case, shift=shift).kd_nodes:
            b, t, u = node.where
            start = (b, t - shift, u)
            if start not in best or node.value < best[start].value:
                best[start] = node
    (student, leaves), (teacher, _) = joints(case, form)
    layout = make_layout(student, *lattice_args(case), case.batch.blank)
    sets = {"full": Full(), "collapsed": Collapsed(), "topk": TopK(case.k, tail)}
    term = LatticeTerm(
        OnlineTeacher([teacher]), layout.nodes, sets[classes], name,
        case.temperature, shift=1,
    )  # fmt: skip
    sums, count = windowed_losses(student, layout, term, 3, blank=case.batch.blank)
    sums.sum().backward()
    nodes, shape = list(best.values()), case.batch.student.shape
    np.testing.assert_allclose(
        sums.detach(), oracles.reduced(nodes, len(sums), "none"), rtol=1e-8
    )
    assert count == len(best)
    grad = np.zeros(shape)
    for node in nodes:
        grad[node.where] += node.grad
    grads = {"logits": grad} if form == "dense" else case.student.backward(grad)
    for part, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad, grads[part], rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------ on frames and tokens


def steps(seed, size=6):
    """student, teacher (B, L, V) with NaN in the padding, lengths (B,)."""
    rng = np.random.default_rng(seed)
    student, teacher = 2 * rng.standard_normal((2, 3, 4, size))
    lengths = np.array([4, 2, 0])
    for b, length in enumerate(lengths):
        student[b, length:] = teacher[b, length:] = math.nan
    return student, teacher, lengths


def nodes_of_steps(student, teacher, lengths, groups_of, temperature, name):
    nodes = []
    for b, length in enumerate(lengths):
        for at in range(length):
            groups, log_q = groups_of(teacher[b, at])
            args = (student[b, at], groups, log_q, temperature, name)
            value, grad = oracles.grouped(*args), oracles.grouped_grad(*args)
            nodes.append(oracles.Node((b, at), value, grad))
    return nodes


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("keep", [(), (2,)])
@pytest.mark.parametrize("name", ["kl", *NAMES])
@pytest.mark.parametrize(
    "classes",
    [Full(), TopK(3), TopK(6), TopK(99), TopK(3, "renormalize"), Collapsed()],
    ids=str,
)
def test_steps(classes, name, keep, temperature):
    student, teacher, lengths = steps(1)

    def targets(logits):
        log_q = oracles.log_softmax(logits, temperature)
        if classes == Full():
            return oracles.full_groups(6), log_q
        if classes == Collapsed():
            groups = oracles.collapsed_groups(6, None, *keep)
        else:
            kept = oracles.topk_classes(log_q, min(classes.k, 6), keep)
            groups = [[c] for c in kept] + [[c for c in range(6) if c not in kept]]
        masses = [oracles.logsumexp(log_q[group]) for group in groups]
        if getattr(classes, "tail", "") == "renormalize":
            norm = oracles.logsumexp(masses[:-1])
            masses = [*(x - norm for x in masses[:-1]), -math.inf]
        return groups, masses

    given = torch.tensor(student, requires_grad=True)
    taught = torch.tensor(teacher, requires_grad=True)

    def loss():
        return steps_kd(
            given, OnlineSteps(taught), torch.from_numpy(lengths), classes=classes,
            divergence=name, temperature=temperature, keep=keep,
        )  # fmt: skip

    if classes == Collapsed() and not keep:
        with pytest.raises(ValueError, match="Collapsed.. needs a blank"):
            loss()
        return
    if (name, getattr(classes, "tail", "")) == ("reverse_kl", "renormalize"):
        with pytest.raises(ValueError, match="divergence: ReverseKL is infinite"):
            loss()
        return
    nodes = nodes_of_steps(student, teacher, lengths, targets, temperature, name)
    weights = torch.tensor([0.5, -1.0, 2.0])
    sums = loss()
    (sums * weights).sum().backward()
    np.testing.assert_allclose(sums.detach(), oracles.reduced(nodes, 3, "none"), 1e-8)
    grad = oracles.reduced_grad(nodes, student.shape, "none", weights.numpy())
    np.testing.assert_allclose(given.grad, grad, rtol=1e-8, atol=1e-9)
    assert taught.grad is None


@pytest.mark.parametrize("reduction", ["batch", "node", "none"])
@pytest.mark.parametrize(
    "name, tail", [("reverse_kl", "bucket"), ("jsd", "bucket"), ("jsd", "renormalize")]
)
def test_essence_kd(name, tail, reduction):
    student, teacher, lengths = steps(2)
    ids = np.argsort(-np.nan_to_num(teacher), -1)[..., :3].copy()
    log_q = torch.tensor(teacher).log_softmax(-1).gather(-1, torch.from_numpy(ids))
    nodes = oracles.essence_kd(student, log_q.numpy(), ids, lengths, tail, 2.0, name)
    given = torch.tensor(student, requires_grad=True)
    loss = essence_kd(
        given, log_q, torch.from_numpy(ids), torch.from_numpy(lengths), tail=tail,
        divergence=name, temperature=2.0, reduction=reduction,
    )  # fmt: skip
    loss.sum().backward()
    expected = oracles.reduced(nodes, 3, reduction)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-9)
    grad = oracles.reduced_grad(nodes, student.shape, reduction, np.ones(3))
    np.testing.assert_allclose(given.grad, grad, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------ on hypotheses


@pytest.mark.parametrize("name", NAMES)
def test_hypotheses(name):
    """Posteriors over the hypotheses of a list; -inf is left out of both."""
    student = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -4.0, math.nan]]).double()
    teacher = torch.tensor([[-1.0, -2.0, -math.inf], [-3.0, -2.5, 7.0]]).double()
    student.requires_grad_()
    losses = full_sum_kd(
        student, teacher, torch.tensor([3, 2]), distance=name, temperature=1.5,
        reduction="none",
    )  # fmt: skip
    losses.sum().backward()
    for b in range(2):
        log_q = oracles.log_softmax(teacher[b, :2].numpy(), 1.5)
        args = (student[b, :2].detach().numpy(), [[0], [1]], log_q, 1.5, name)
        assert losses[b].item() == pytest.approx(oracles.grouped(*args), rel=1e-9)
        grad = oracles.grouped_grad(*args)
        np.testing.assert_allclose(student.grad[b, :2], grad, rtol=1e-9)
        assert student.grad[b, 2] == 0


# ------------------------------------------------------------ identities


# Renormalised, the teacher gives other classes no mass: the two are not equal.
@pytest.mark.parametrize("nodes", ["lattice", "band", "path"])
@pytest.mark.parametrize(
    "name, classes, tail", [cell for cell in CELLS if cell[2] == "bucket"]
)
def test_a_student_that_equals_its_teacher(name, classes, tail, nodes):
    for form in FORMS:
        case = random_case(1, nodes, classes, tail, divergence=name)
        batch = replace(case.batch, teacher=case.batch.student)
        case = replace(case, teacher=case.student, batch=batch)
        (student, leaves), (teacher, _) = joints(case, form)
        kd = full_or_kept(case, student, teacher)
        kd.backward()
        assert abs(kd.item()) < 1e-12
        for leaf in leaves.values():
            np.testing.assert_allclose(leaf.grad, 0, atol=1e-10)


def full_or_kept(case, student, teacher, **changed):
    """The KD loss of a case alone."""
    options = dict(
        classes=case.classes,
        tail=case.tail,
        k=case.k,
        divergence=case.divergence,
        temperature=case.temperature,
        blank=case.batch.blank,
    )
    for name in ("path", "path_lengths", "ranges"):
        if getattr(case, name) is not None:
            options[name] = torch.from_numpy(getattr(case, name))
    args = lattice_args(case)
    return transducer_kd(student, teacher, *args, **{**options, **changed})[1]


@pytest.mark.parametrize("forms", SIDES, ids=str)
@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("name", NAMES)
def test_two_classes_and_all_classes(name, nodes, forms):
    """V = {blank, label}: collapsed is full. k = V is full."""
    case = random_case(0, nodes, "full", v=2, divergence=name)
    assert_results(run(case, forms, classes="collapsed"), run(case, forms), **RESULT)
    case = random_case(2, nodes, "full", divergence=name)
    everything = dict(classes="topk", k=case.batch.student.shape[-1])
    assert_results(run(case, forms, **everything), run(case, forms), **RESULT)


@pytest.mark.parametrize("classes, tail", CLASSES)
def test_jsd_is_bounded_and_symmetric(classes, tail):
    """Between 0 and log 2 per node; student and teacher can be swapped."""
    case = random_case(
        4, "lattice", classes, tail, divergence="jsd", scale=6.0, temperature=1.0,
        weighted=False, reduction="none",
    )  # fmt: skip
    kd = run(case).kd
    nodes = (case.batch.label_lengths + 1) * case.batch.logit_lengths
    assert (kd > 0).all() and (kd <= math.log(2) * nodes + 1e-12).all()
    if classes != "topk":  # the teacher chooses the classes of topk
        batch = replace(
            case.batch, student=case.batch.teacher, teacher=case.batch.student
        )
        swapped = replace(case, batch=batch, student=case.teacher, teacher=case.student)
        np.testing.assert_allclose(run(swapped).kd, kd, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    teacher = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    student = torch.randn_like(teacher).requires_grad_()
    lattice = dict(
        labels=torch.tensor([[1], [2]]),
        logit_lengths=torch.tensor([3, 2]),
        label_lengths=torch.tensor([1, 0]),
    )
    made = dict(temperature=1.5, divergence=name)
    for loss in (full_lattice_kd, collapsed_lattice_kd):
        given = partial(loss, teacher=teacher, **made)
        assert torch.autograd.gradcheck(lambda z, f=given: f(z, **lattice), student)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name, classes, tail", CELLS)
def test_extreme_logits_stay_finite(name, classes, tail, dtype):
    """One class far above all, on either side; nodes without label and rest."""
    for v in (2, 3, 9):
        for which in range(min(v, 3)):
            logits = torch.zeros(1, 2, 2, v, dtype=dtype)
            logits[..., which] = 1e4
            for teacher in (-logits, 0 * logits, logits, logits.roll(1, -1)):
                student = logits.clone().requires_grad_()
                losses = transducer_kd(
                    student, teacher, torch.tensor([[1]]), torch.tensor([2]),
                    torch.tensor([1]), classes=classes, tail=tail, k=min(v, 2),
                    divergence=name,
                )  # fmt: skip
                sum(losses).backward()
                assert all(torch.isfinite(one) for one in losses)
                assert torch.isfinite(student.grad).all()


def test_a_tail_lost_to_rounding_does_not_drown_reverse_kl():
    """The k best of a confident teacher sum to 1 in float32; its tail is not zero."""
    teacher = torch.zeros(1, 1, 5)
    teacher[..., 0] = 30.0
    student = torch.zeros(1, 1, 5, requires_grad=True)
    loss = steps_kd(
        student, OnlineSteps(teacher), torch.tensor([1]), classes=TopK(2),
        divergence="reverse_kl",
    )  # fmt: skip
    loss.sum().backward()
    assert 1 < loss.item() < 30 and student.grad.abs().max() < 30


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name, monkeypatch):
    from espnet_kd.lattice import reading

    case = random_case(6, "lattice", "full", divergence=name)
    expected = run(case)
    monkeypatch.setitem(reading.NODES, "cpu", 3)
    assert_results(run(case), expected, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------ names and objects


def test_a_custom_divergence():
    """One formula serves all nodes and classes, with its gradient by autograd."""

    class Twice(Divergence):
        def formula(self, log_q, log_p):
            return 2 * divergence_of("kl").formula(log_q, log_p)

    for classes, tail in CLASSES:
        case = random_case(7, "path", classes, tail, weighted=False)
        twice, once = run(case, divergence=Twice()), run(case)
        np.testing.assert_allclose(twice.kd, 2 * once.kd, rtol=1e-12)
        assert twice.grads.keys() == once.grads.keys()


def test_an_unknown_name_is_refused():
    case = random_case(0, "lattice", "full")
    with pytest.raises(ValueError, match="divergence: 'kld' is not one of .*'jsd'"):
        run(case, divergence="kld")
    with pytest.raises(ValueError, match="classes: 'most' is not one of .*'topk'"):
        run(case, classes="most")
    with pytest.raises(ValueError, match="tail: 'cut' is not one of"):
        run(case, classes="topk", tail="cut")
    with pytest.raises(ValueError, match="k: 0 classes"):
        run(case, classes="topk", k=0)


def test_an_infinite_divergence_is_refused():
    case = random_case(0, "lattice", "topk", "renormalize")
    with pytest.raises(ValueError, match="ReverseKL is infinite .*tail: bucket"):
        run(case, divergence="reverse_kl")


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("name", ["kl", *NAMES])
@pytest.mark.parametrize("kept", [4, 6])
def test_steps_with_fewer_classes_repeat_one(name, tail, kept):
    """Adaptive top-k: the value and the gradient are those of each step's own classes.

    With as many columns as there are classes, too.
    """
    if (name, tail) == ("reverse_kl", "renormalize"):
        pytest.skip("it is infinite")
    student = torch.randn(1, 5, 6, dtype=torch.float64)
    values, ids = torch.randn(1, 5, 6).double().log_softmax(-1).topk(kept)
    padded, repeated = values.clone(), ids.clone()
    expected, gradients = 0.0, torch.zeros_like(student)
    for step, own in enumerate([kept, 3, 1, 2, kept]):
        repeated[0, step, own:] = ids[0, step, 0]
        padded[0, step, own:] = values[0, step, 0]
        here = student[:, step : step + 1].clone().requires_grad_()
        known = (x[:, step : step + 1, :own] for x in (values, ids))
        loss = steps_kd(
            here, StoredSteps(*known), torch.tensor([1]), classes=TopK(own, tail),
            divergence=name,
        )  # fmt: skip
        loss.sum().backward()
        expected += loss.item()
        gradients[:, step] = here.grad[:, 0]
    student.requires_grad_()
    loss = steps_kd(
        student, StoredSteps(padded, repeated), torch.tensor([5]),
        classes=TopK(kept, tail), divergence=name,
    )  # fmt: skip
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(student.grad, gradients)
