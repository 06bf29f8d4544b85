"""What must hold between the cells of transducer_kd, whatever the numbers.

Inputs come from tests.oracles (numpy); two calls are compared, or one with a constant.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_kd.lattice import best_path, occupancy, transducer_loss
from espnet_kd.losses import (
    FactoredLogits,
    collapsed_lattice_kd,
    full_lattice_kd,
    path_kd,
    transducer_kd,
)
from tests import oracles
from tests.losses.grid import (
    BACKENDS,
    CLASSES,
    FORMS,
    NODES,
    SIDES,
    Result,
    assert_results,
    factored,
    lattice_args,
    options,
    run,
    side,
    upstream,
    weighted_sum,
)
from tests.oracles import random_case

SEEDS = (0, 1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def twins(case):
    """The case with the student's joint as teacher too."""
    batch = replace(case.batch, teacher=case.batch.student)
    return replace(case, teacher=case.student, batch=batch)


def kd_and_grads(case, forms):
    """KD alone: the transducer loss must not add to the gradient."""
    student, leaves = side(case, "student", forms[0])
    teacher, _ = side(case, "teacher", forms[1])
    kd = transducer_kd(student, teacher, *lattice_args(case), **options(case))[1]
    kd.sum().backward()
    return kd.detach().numpy(), [leaf.grad.numpy() for leaf in leaves.values()]


# ------------------------------------------------------------ equal models


@pytest.mark.parametrize("forms", SIDES, ids=str)
@pytest.mark.parametrize("classes", ["full", "collapsed", "topk"])
@pytest.mark.parametrize("nodes", ["lattice", "band", "path"])
def test_a_student_that_equals_its_teacher(nodes, classes, forms):
    """No loss and no gradient (nodes compared without a shift)."""
    for seed in SEEDS:
        for v in (2, 3, 50):
            case = twins(random_case(seed, nodes, classes, v=v))
            kd, grads = kd_and_grads(case, forms)
            np.testing.assert_allclose(kd, 0, atol=1e-12)
            for grad in grads:
                np.testing.assert_allclose(grad, 0, atol=1e-12)


def test_the_difference_of_renormalised_twins():
    """sum_k q_k log(q_k / p_k) with q = p / m on the kept classes is -log m."""
    case = twins(random_case(2, "path", "topk", "renormalize", v=12, weighted=False))
    case = replace(case, reduction="batch", k=3)
    mass = 0.0
    for b, t, u in case.nodes():
        log_p = oracles.log_softmax(case.batch.student[b, t, u], case.temperature)
        kept = oracles.topk_classes(log_p, 3, [case.batch.blank])
        mass -= oracles.logsumexp(log_p[kept]) * case.temperature**2
    kd, _ = kd_and_grads(case, ("factored", "factored"))
    assert float(kd) == pytest.approx(mass / len(case.batch.labels), rel=1e-9)


@pytest.mark.parametrize("classes, tail", CLASSES)
def test_no_loss_is_negative(classes, tail):
    for seed in range(8):
        for nodes in ("lattice", "path"):
            case = replace(random_case(seed, nodes, classes, tail), reduction="none")
            kd, _ = kd_and_grads(case, ("factored", "dense"))
            assert (kd >= 0).all()


# ------------------------------------------------------------ classes


@pytest.mark.parametrize("forms", SIDES, ids=str)
@pytest.mark.parametrize("nodes", NODES)
def test_two_classes(nodes, forms):
    """With V = {blank, label} collapsed is full, and so is top-2."""
    for seed in SEEDS:
        case = random_case(seed, nodes, "full", v=2)
        full = run(case, forms)
        assert_results(run(case, forms, classes="collapsed"), full)
        for tail in ("bucket", "renormalize"):
            made = {"classes": "topk", "k": 2, "tail": tail}
            assert_results(run(case, forms, **made), full)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("nodes", NODES)
def test_all_classes_kept(nodes, tail):
    """k = V is full."""
    for seed, forms in enumerate(SIDES):
        case = random_case(seed, nodes, "full")
        v = case.batch.student.shape[-1]
        actual = run(case, forms, classes="topk", k=v, tail=tail)
        assert_results(actual, run(case, forms))


def test_more_classes_have_a_larger_kl():
    """A finer grouping never has a smaller KL: collapsed <= full, top-k rises with k.

    (Data processing; top-k with a bucket, groups of k + 1 refine those of k.)
    """
    for seed in range(4):
        case = random_case(seed, "lattice", "full", v=12, reduction="none")
        full = run(case).kd
        rising = [run(case, classes="topk", k=k).kd for k in (1, 2, 5, 11, 12)]
        for one, other in zip(rising, (*rising[1:], full)):
            assert (one <= other + 1e-12).all()
        assert (run(case, classes="collapsed").kd <= full + 1e-12).all()


# ------------------------------------------------------------ nodes


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_a_band_of_all_rows_is_the_lattice(topology, classes, tail, backend):
    for seed, forms in enumerate(SIDES):
        case = random_case(seed, "lattice", classes, tail, topology=topology)
        frames, rows = case.batch.student.shape[1:3]
        everything = np.tile(np.arange(rows), (len(case.batch.labels), frames, 1))
        banded = run(replace(case, ranges=everything), forms, backend=backend)
        assert_results(banded, run(case, forms, backend=backend))


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["path", "path shifted"])
@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_a_path_is_a_lattice_whose_other_nodes_weigh_nothing(
    reduction, nodes, classes, tail
):
    for seed, forms in enumerate(SIDES):
        case = random_case(
            seed, nodes, classes, tail, weighted=False, reduction=reduction
        )
        weights = np.zeros(case.batch.student.shape[:3])
        for where in case.nodes():
            weights[where] = 1.0
        lattice = replace(case, path=None, path_lengths=None, weights=weights)
        assert_results(run(lattice, forms), run(case, forms))


def test_a_path_node_mean_counts_the_path_only():
    """ "node": the mean over the nodes compared, the weighted sum by their number."""
    case = random_case(1, "path", "full", weighted=False, reduction="node")
    weights = np.full(case.batch.student.shape[:3], 3.0)
    plain = run(case).kd
    np.testing.assert_allclose(run(replace(case, weights=weights)).kd, 3 * plain)
    batch = run(replace(case, reduction="batch")).kd
    mean = batch * len(case.batch.labels) / case.path_lengths.sum()
    np.testing.assert_allclose(plain, mean)


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "path"])
def test_a_shift_is_a_rolled_student(nodes, classes, tail):
    """Reading the student s frames later = a student whose frames come s earlier."""
    s = 1
    for seed in SEEDS:
        case = random_case(
            seed, nodes, classes, tail, size=(1, 5, 2), weighted=False, shift=0,
            reduction="batch",
        )  # fmt: skip
        shifted, _ = kd_and_grads(replace(case, shift=s), ("factored", "factored"))
        joint = replace(case.student, encoder=np.roll(case.student.encoder, -s, 1))
        weights = np.ones(case.batch.student.shape[:3])
        weights[:, -s:] = 0  # no frame s later exists for these
        rolled = replace(
            case,
            student=joint,
            weights=weights,
            batch=replace(case.batch, student=joint.logits()),
        )
        kd, _ = kd_and_grads(rolled, ("factored", "factored"))
        np.testing.assert_allclose(shifted, kd, rtol=1e-9)


def test_weights_are_linear():
    """kd(v + w) = kd(v) + kd(w); weights of 1 change nothing; of 0, no loss."""
    for nodes, (classes, tail) in zip(NODES, CLASSES):
        case = random_case(3, nodes, classes, tail, weighted=True)
        one = case.weights
        other = one[::-1].copy() ** 2
        other[case.batch.padding()] = math.nan
        other[np.isnan(other) & ~case.batch.padding()] = 0.5
        kd = [run(replace(case, weights=w)).kd for w in (one, other, one + other)]
        np.testing.assert_allclose(kd[0] + kd[1], kd[2], rtol=1e-9)
        plain = run(replace(case, weights=None))
        assert_results(run(replace(case, weights=np.ones(one.shape))), plain)
        nothing = run(replace(case, weights=np.zeros(one.shape)))
        assert (nothing.kd == 0).all()
        np.testing.assert_allclose(nothing.transducer, plain.transducer)


def test_weights_of_the_teacher_s_occupancy(backend):
    """Weights in half precision or float32 work too; they get no gradient."""
    case = random_case(4, "lattice", "collapsed", topology="regular", weighted=False)
    teacher, _ = side(case, "teacher", "factored")
    made = {"blank": case.batch.blank, "backend": backend}
    weights = occupancy(teacher, *lattice_args(case), **made).sum(-1).detach()
    exact = np.zeros(case.batch.student.shape[:3])
    for b in range(len(exact)):
        logits, labels = case.batch.cut(b, case.batch.teacher)
        exits = oracles.exit_log_probs(logits, labels, case.batch.blank)
        share = oracles.list_lattice(exits, "regular")[1].sum(-1)
        exact[b, : share.shape[0], : share.shape[1]] = share
    expected = run(replace(case, weights=exact))
    assert_results(run(case, node_weights=weights, backend=backend), expected)
    narrow = run(case, node_weights=weights.float(), backend=backend)
    np.testing.assert_allclose(narrow.kd, expected.kd, rtol=1e-5)


# ------------------------------------------------------------ the named functions


@pytest.mark.parametrize("forms", SIDES, ids=str)
def test_the_named_losses_are_cells(forms):
    for seed in SEEDS:
        for nodes, classes in (
            ("lattice", "collapsed"),
            ("lattice", "full"),
            ("path shifted", "full"),
        ):
            case = random_case(seed, nodes, classes, weighted=False)
            actual = run(case, forms)
            student, leaves = side(case, "student", forms[0])
            teacher, _ = side(case, "teacher", forms[1])
            made = {"temperature": case.temperature, "reduction": case.reduction}
            args, blank = lattice_args(case), {"blank": case.batch.blank}
            if case.path is None:
                named = {"collapsed": collapsed_lattice_kd, "full": full_lattice_kd}
                kd = named[classes](student, teacher, *args, **blank, **made)
            else:
                kd = path_kd(
                    student,
                    teacher,
                    torch.from_numpy(case.path),
                    torch.from_numpy(case.path_lengths),
                    shift=case.shift,
                    student_lengths=args[1],
                    **made,
                )
            reduction = "none" if case.reduction == "none" else "mean"
            plain = transducer_loss(student, *args, **blank, reduction=reduction)
            weighted_sum((plain, kd), upstream(case)).backward()
            grads = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
            values = plain.detach().numpy(), kd.detach().numpy()
            assert_results(actual, Result(*values, grads))


def test_the_teacher_s_best_path():
    """transducer_kd accepts what best_path returns, lengths included."""
    case = random_case(5, "lattice", "full", weighted=False, topology="regular")
    teacher, _ = side(case, "teacher", "factored")
    path, lengths, _ = best_path(teacher, *lattice_args(case), blank=case.batch.blank)
    result = run(case, path=path, path_lengths=lengths)
    assert_results(run(case, path=path), result)  # T_b + U_b is the default
    walked = replace(case, path=path.numpy(), path_lengths=lengths.numpy())
    np.testing.assert_allclose(result.kd, walked.kd()[0], rtol=1e-9)


# ------------------------------------------------------------ the batch


def regrouped(case, order, frames, rows):
    """Utterances in another order, with more padding in every array of the case."""

    def grown(array, *sizes, fill=math.nan):
        if array is None:
            return None
        shape = (len(order), *sizes, *array.shape[1 + len(sizes) :])
        wide = np.full(shape, fill, dtype=array.dtype)
        wide[tuple(slice(n) for n in array.shape)] = array[order]
        return wide

    batch = case.batch
    return replace(
        case,
        batch=replace(
            batch,
            student=grown(batch.student, frames, rows),
            teacher=grown(batch.teacher, frames, rows),
            labels=grown(batch.labels, rows - 1, fill=-1),
            logit_lengths=batch.logit_lengths[order],
            label_lengths=batch.label_lengths[order],
        ),
        **{
            name: replace(
                joint,
                encoder=grown(joint.encoder, frames),
                decoder=grown(joint.decoder, rows),
            )
            for name, joint in (("student", case.student), ("teacher", case.teacher))
        },
        path=grown(case.path, frames + rows, fill=-1),
        path_lengths=None if case.path is None else case.path_lengths[order],
        ranges=grown(case.ranges, frames, fill=0),
        weights=grown(case.weights, frames, rows),
    )


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_more_padding_and_another_order(nodes, classes, tail, backend):
    for form in FORMS:
        case = random_case(6, nodes, classes, tail, size=(4, 4, 2), reduction="none")
        order = [2, 0, 3, 1]
        moved = regrouped(case, order, frames=7, rows=6)
        student, leaves = side(moved, "student", form)
        teacher, _ = side(moved, "teacher", form)
        made = options(moved, backend=backend)
        losses = transducer_kd(student, teacher, *lattice_args(moved), **made)
        weights = [np.asarray(one)[order] for one in upstream(case)]
        weighted_sum(losses, weights).backward()
        expected = run(case, (form, form), backend=backend)
        for loss, value in zip(losses, expected):
            np.testing.assert_allclose(loss.detach(), value[order], rtol=1e-9)
        for name, leaf in leaves.items():
            grad, other = leaf.grad.numpy(), expected.grads[name]
            if name not in ("weight", "bias"):
                other, inside = other[order], tuple(slice(n) for n in other.shape)
                outside = grad.copy()
                outside[inside] = 0
                assert (outside == 0).all()
                grad = grad[inside]
            np.testing.assert_allclose(grad, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("classes, tail", CLASSES)
def test_an_utterance_alone(classes, tail):
    """The sums of a batch are those of its utterances one by one, without padding."""
    case = random_case(7, "lattice", classes, tail, reduction="none", size=(3, 5, 3))
    together = run(case)
    for b in range(3):
        frames = case.batch.logit_lengths[b]
        count = case.batch.label_lengths[b]
        one = regrouped(case, [b, *(x for x in range(3) if x != b)], 5, 4)
        cut, rows = slice(0, 1), count + 1
        batch = replace(
            one.batch,
            student=one.batch.student[cut, :frames, :rows],
            teacher=one.batch.teacher[cut, :frames, :rows],
            labels=one.batch.labels[cut, :count],
            logit_lengths=one.batch.logit_lengths[cut],
            label_lengths=one.batch.label_lengths[cut],
        )
        joints = {
            name: replace(
                joint,
                encoder=joint.encoder[cut, :frames],
                decoder=joint.decoder[cut, :rows],
            )
            for name, joint in (("student", one.student), ("teacher", one.teacher))
        }
        weights = None if one.weights is None else one.weights[cut, :frames, :rows]
        alone = run(replace(one, batch=batch, weights=weights, **joints))
        np.testing.assert_allclose(alone.transducer, together.transducer[b : b + 1])
        np.testing.assert_allclose(alone.kd, together.kd[b : b + 1], rtol=1e-9)


def test_int32_labels_lengths_and_paths():
    """ESPnet's transducer passes int32."""
    for nodes in ("lattice", "path", "band"):
        case = random_case(8, nodes, "full")
        student, _ = side(case, "student", "factored")
        teacher, _ = side(case, "teacher", "factored")
        args = [one.to(torch.int32) for one in lattice_args(case)]
        made = options(case)
        if case.path is not None:
            made["path_lengths"] = made["path_lengths"].to(torch.int32)
        losses = transducer_kd(student, teacher, *args, **made)
        for loss, value in zip(losses, run(case)):
            np.testing.assert_allclose(loss.detach(), value, rtol=1e-12)


def test_both_backends_agree(backend):
    for nodes, (classes, tail) in zip(NODES, CLASSES):
        case = random_case(9, nodes, classes, tail, size=(4, 12, 5), v=7)
        assert_results(run(case, backend=backend), run(case, backend="torch"))
        assert_results(run(case, backend=None), run(case, backend="torch"))


# ------------------------------------------------------------ extreme logits


def extreme_cases(nodes, classes, tail):
    """Logits of +-1e4 on the student, on the teacher, on both, opposed."""
    case = random_case(
        10, nodes, classes, tail, v=6, activation="identity", bias=True, width=3,
        scale=1.0, reduction="none",
    )  # fmt: skip

    def times(joint, factor):
        return replace(joint, weight=factor * joint.weight, bias=factor * joint.bias)

    for a, b in ((1e4, 1.0), (1.0, 1e4), (1e4, 1e4), (1e4, -1e4), (-1e4, -1e4)):
        student, teacher = times(case.student, a), times(case.teacher, b)
        if a == -b:
            teacher = times(case.student, b)
        dense = {"student": student.logits(), "teacher": teacher.logits()}
        batch = replace(case.batch, **dense)
        yield replace(case, student=student, teacher=teacher, batch=batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_extreme_logits(nodes, classes, tail, dtype):
    """No NaN or Inf, and in float64 the right values and gradients."""
    for case in extreme_cases(nodes, classes, tail):
        for forms in (("factored", "factored"), ("dense", "dense")):
            actual = run(case, forms, dtype=dtype)
            for one in (actual.transducer, actual.kd, *actual.grads.values()):
                assert np.isfinite(one).all()
            transducer, _ = case.transducer
            kd, _ = case.kd()
            np.testing.assert_allclose(actual.transducer, transducer, rtol=1e-4)
            np.testing.assert_allclose(actual.kd, kd, rtol=1e-4, atol=1e-2)
            if dtype == torch.float64:
                np.testing.assert_allclose(actual.kd, kd, rtol=1e-9, atol=1e-9)
                grad = case.student_grad(*upstream(case))
                grads = {"logits": grad}
                if forms[0] == "factored":
                    grads = case.student.backward(grad)
                for name, one in grads.items():
                    size = max(np.abs(one).max(), 1.0)
                    np.testing.assert_allclose(
                        actual.grads[name], one, rtol=1e-7, atol=1e-7 * size
                    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("classes, tail", CLASSES)
def test_one_logit_above_all(classes, tail, dtype):
    """A single class of +-1e4: blank, the label, another; constant logits of 1e4."""
    for v in (2, 3, 9):
        for which in range(min(v, 3)):
            for value in (1e4, -1e4):
                logits = torch.zeros(1, 2, 2, v, dtype=dtype)
                logits[..., which] = value
                others = (
                    -logits,
                    torch.zeros_like(logits),
                    torch.full_like(logits, value),
                )
                for teacher in (*others, logits.clone()):
                    student = logits.clone().requires_grad_()
                    losses = transducer_kd(
                        student, teacher, torch.tensor([[1]]), torch.tensor([2]),
                        torch.tensor([1]), classes=classes, tail=tail, k=min(v, 2),
                    )  # fmt: skip
                    sum(losses).backward()
                    assert all(torch.isfinite(one) for one in losses)
                    assert torch.isfinite(student.grad).all()
                    if teacher.equal(logits) and tail == "bucket":
                        assert float(losses[1].detach()) == pytest.approx(0, abs=1e-6)


def test_a_saturated_tanh():
    """Inputs of 1e4: a hidden layer of +-1 and no gradient before it."""
    case = random_case(11, "lattice", "collapsed", activation="tanh", bias=True)
    joint = replace(case.student, encoder=1e4 * case.student.encoder)
    logits = joint.logits()
    case = replace(case, student=joint, batch=replace(case.batch, student=logits))
    actual = run(case)
    np.testing.assert_allclose(actual.kd, case.kd()[0], rtol=1e-9)
    grads = joint.backward(case.student_grad(*upstream(case)))
    for name, grad in grads.items():
        np.testing.assert_allclose(actual.grads[name], grad, rtol=1e-8, atol=1e-10)


def test_a_teacher_of_another_width():
    """Joint widths of 640 and 320 in practice: only (B, T, U+1, V) must agree."""
    case = random_case(12, "lattice", "collapsed", width=5)
    wide = random_case(12, "lattice", "collapsed", width=2)
    case = replace(
        case,
        teacher=wide.teacher,
        batch=replace(case.batch, teacher=wide.batch.teacher),
    )
    assert case.student.weight.shape[1] != case.teacher.weight.shape[1]
    np.testing.assert_allclose(run(case).kd, case.kd()[0], rtol=1e-9)
    logits, _ = factored(case.teacher, case, poison=0.0)
    assert isinstance(logits, FactoredLogits)
    assert_results(run(case, teacher=logits.dense().detach()), run(case))
