"""Half precision, float32 and autocast, bounded against float64 of the same numbers.

The reference is the float64 oracle on the inputs as they were rounded, so that what is
measured is the arithmetic of transducer_kd and not the rounding of its inputs.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_kd.lattice import occupancy, total_score, transducer_loss
from espnet_kd.losses import collapsed_lattice_kd, transducer_kd
from tests import oracles
from tests.losses.grid import (
    CLASSES,
    NODES,
    Result,
    lattice_args,
    options,
    oracle_results,
    run,
    side,
    upstream,
    weighted_sum,
)
from tests.oracles import random_case

# half the distance of neighbouring numbers, relative, and absolute where subnormal
UNIT = {
    torch.float32: (2.0**-24, 0.0),
    torch.bfloat16: (2.0**-8, 0.0),
    torch.float16: (2.0**-11, 2.0**-25),
}
FLOAT32 = 1e-4  # error that float32 may have, relative to the largest element
DTYPES = list(UNIT)
CELLS = list(zip(NODES, (*CLASSES, *CLASSES)))


def rounded(case, dtype):
    """The case with every input rounded to `dtype`, in float64."""

    def to(array):
        if array is None:
            return None
        return torch.tensor(array).to(dtype).double().numpy()

    joints = {}
    for name in ("student", "teacher"):
        joint = getattr(case, name)
        joints[name] = replace(joint, **{n: to(x) for n, x in joint.parts().items()})
    batch = replace(
        case.batch, **{name: joint.logits() for name, joint in joints.items()}
    )
    return replace(case, batch=batch, weights=to(case.weights), **joints)


def rounded_dense(case, dtype):
    """The same for logits that are passed as such."""
    logits = {
        name: torch.tensor(getattr(case.batch, name)).to(dtype).double().numpy()
        for name in ("student", "teacher")
    }
    case = rounded(case, dtype)
    return replace(case, batch=replace(case.batch, **logits))


def assert_precise(actual, expected, dtype):
    """Values to 1e-4; gradients to 1e-4 of the largest and their own rounding."""
    for name in ("transducer", "kd"):
        np.testing.assert_allclose(
            getattr(actual, name),
            getattr(expected, name),
            rtol=FLOAT32,
            atol=FLOAT32 * 1e-1,
            err_msg=name,
        )
    relative, absolute = UNIT[dtype]
    for name, grad in expected.grads.items():
        error = np.abs(actual.grads[name] - grad)
        limit = FLOAT32 * np.abs(grad).max() + relative * np.abs(grad) + absolute
        assert (error <= limit).all(), (name, (error / limit).max())


def has_ties(case):
    """Rounded logits may tie, and either of two equals may be among the k best."""
    if case.classes != "topk":
        return False
    for b, t, u in case.nodes():
        logits = np.delete(case.batch.teacher[b, t, u], case.batch.blank)
        last, next_one = -np.sort(-logits)[case.k - 2 : case.k]
        if last == next_one:
            return True
    return False


def precision_case(nodes, classes, tail, seed=1, **fixed):
    fixed = {"v": 60, "size": (3, 6, 3), "width": 6, "scale": 1.5, "k": 8, **fixed}
    return random_case(seed, nodes, classes, tail, **fixed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nodes, cell", CELLS, ids=str)
def test_factored(nodes, cell, dtype):
    case = rounded(precision_case(nodes, *cell), dtype)
    actual = run(case, ("factored", "factored"), dtype=dtype)
    assert_precise(actual, oracle_results(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nodes, cell", CELLS, ids=str)
def test_dense(nodes, cell, dtype):
    cases = (
        rounded_dense(precision_case(nodes, *cell, seed=seed, v=12, k=4), dtype)
        for seed in range(50)
    )
    case = next(case for case in cases if not has_ties(case))
    actual = run(case, ("dense", "dense"), dtype=dtype)
    assert_precise(actual, oracle_results(case, "dense"), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes, tail", CLASSES)
def test_a_thousand_classes(classes, tail, dtype):
    case = precision_case("lattice", classes, tail, v=1000, size=(2, 4, 2))
    case = rounded(case, dtype)
    assert_precise(run(case, dtype=dtype), oracle_results(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peaky_models(dtype):
    """Confident on both sides: a rest of e^-20 at some nodes, still exact.

    In float32 1 - p(label) - p(blank) would be 0 or noise there.
    """
    case = precision_case("lattice", "collapsed", "bucket", v=5, blank=0)
    joint = replace(case.student, weight=16.0 * case.student.weight)
    case = rounded(replace(case, student=joint), dtype)
    log_p = case.batch.student - np.logaddexp.reduce(
        case.batch.student, axis=-1, keepdims=True
    )
    smallest = [
        oracles.logsumexp(np.delete(log_p[b, t, u], [0, case.batch.labels[b, u]]))
        for b, t, u in case.nodes()
        if u < case.batch.label_lengths[b]
    ]
    assert min(smallest) < -20
    assert_precise(run(case, dtype=dtype), oracle_results(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_types_of_the_results(dtype):
    """Losses in float32; each gradient in the type of its part."""
    for form in ("dense", "factored"):
        case = precision_case("lattice", "collapsed", "bucket", weighted=False)
        student, leaves = side(case, "student", form, dtype)
        teacher, _ = side(case, "teacher", form, dtype)
        losses = transducer_kd(student, teacher, *lattice_args(case), **options(case))
        assert [loss.dtype for loss in losses] == [torch.float32] * 2
        weighted_sum(losses, upstream(case)).backward()
        assert all(leaf.grad.dtype == dtype for leaf in leaves.values())


def test_float64_stays_float64():
    case = precision_case("lattice", "collapsed", "bucket")
    for forms in (("dense", "dense"), ("factored", "factored")):
        student, _ = side(case, "student", forms[0])
        teacher, _ = side(case, "teacher", forms[1])
        losses = transducer_kd(student, teacher, *lattice_args(case), **options(case))
        assert [loss.dtype for loss in losses] == [torch.float64] * 2


@pytest.mark.parametrize("student", ["dense", "factored"])
@pytest.mark.parametrize("teacher", ["dense", "factored"])
def test_a_teacher_in_half_precision(student, teacher):
    """The student's type decides; the teacher may be stored or run in another."""
    case = precision_case("lattice", "collapsed", "bucket", weighted=False)
    make = rounded_dense if teacher == "dense" else rounded
    half = make(case, torch.bfloat16)
    case = replace(
        case,
        teacher=half.teacher,
        batch=replace(case.batch, teacher=half.batch.teacher),
    )
    taught, _ = side(case, "teacher", teacher, torch.bfloat16)
    actual = run(case, (student, None), dtype=torch.float32, teacher=taught)
    assert_precise(actual, oracle_results(case, student), torch.float32)


# ------------------------------------------------------------ autocast


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("nodes, cell", CELLS, ids=str)
def test_autocast_changes_nothing(nodes, cell, dtype):
    """Forward in autocast, backward outside of it (as trainers do) and inside."""
    case = precision_case(nodes, *cell)
    for forms in (("factored", "factored"), ("dense", "factored")):
        plain = run(case, forms, dtype=dtype)
        student, leaves = side(case, "student", forms[0], dtype)
        teacher, _ = side(case, "teacher", forms[1], dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            args = (student, teacher, *lattice_args(case))
            losses = transducer_kd(*args, **options(case, dtype))
        weighted_sum(losses, upstream(case)).backward()
        grads = {n: leaf.grad.double().numpy() for n, leaf in leaves.items()}
        values = [loss.detach().double().numpy() for loss in losses]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = run(case, forms, dtype=dtype)
        for other in (Result(*values, grads), inside):
            for one, two in zip(plain[:2], other[:2]):
                np.testing.assert_array_equal(one, two)
            for name, grad in plain.grads.items():
                np.testing.assert_array_equal(grad, other.grads[name], err_msg=name)


def test_autocast_changes_no_lattice_function():
    case = precision_case("lattice", "collapsed", "bucket", topology="regular")

    def everything():
        student, leaves = side(case, "student", "factored", torch.float32)
        teacher, _ = side(case, "teacher", "factored", torch.float32)
        args, made = lattice_args(case), {"blank": case.batch.blank}
        score = total_score(student, *args, **made)
        loss = transducer_loss(student, *args, **made)
        kd = collapsed_lattice_kd(student, teacher, *args, **made)
        (score.sum() + 3 * loss.sum() + kd).backward()
        share = occupancy(student, *args, **made)
        return [score, loss, kd, share, *(leaf.grad for leaf in leaves.values())]

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = everything()
    for one, other in zip(plain, lowered):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
