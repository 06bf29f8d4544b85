"""A `tests.oracles.GridCase` as arguments of transducer_kd, and its results as numbers.

All padding of the case becomes NaN or -1, so that every comparison with
the oracle is a test of padding too.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from espnet_kd.losses import FactoredLogits, transducer_kd

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
FORMS = ["dense", "factored"]
SIDES = [(student, teacher) for student in FORMS for teacher in FORMS]
NODES = ["lattice", "band", "path", "path shifted", "lattice shifted", "band shifted"]
CLASSES = [
    ("full", "bucket"),
    ("topk", "bucket"),
    ("topk", "renormalize"),
    ("collapsed", "bucket"),
]
# Has no name, so a callable is passed
ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "identity": lambda x: x}


class Result(NamedTuple):
    """The two losses and the gradient of their weighted sum, by part, as arrays."""

    transducer: np.ndarray
    kd: np.ndarray
    grads: dict[str, np.ndarray]


def factored(joint, case, dtype=torch.float64, poison=math.nan):
    """-> FactoredLogits with `poison` in the padding, its leaves by name."""
    lengths = (case.batch.logit_lengths, case.batch.label_lengths)
    arrays = joint.poisoned(*lengths, poison).parts()
    leaves = {
        name: torch.tensor(array, dtype=dtype, requires_grad=True)
        for name, array in arrays.items()
    }
    return FactoredLogits(**leaves, activation=ACTIVATIONS[joint.activation]), leaves


def dense(logits, case, dtype=torch.float64, poison=math.nan):
    """-> logits with `poison` in the padding, their leaves by name."""
    logits = logits.copy()
    logits[case.batch.padding()] = poison
    leaf = torch.tensor(logits, dtype=dtype, requires_grad=True)
    return leaf, {"logits": leaf}


def side(case, which, form, dtype=torch.float64, poison=math.nan):
    """-> the argument `which` ("student", "teacher") in `form`, its leaves by name."""
    if form == "factored":
        return factored(getattr(case, which), case, dtype, poison)
    return dense(getattr(case.batch, which), case, dtype, poison)


def lattice_args(case, label=-1):
    """labels with `label` as padding, logit_lengths, label_lengths."""
    labels = case.batch.labels.copy()
    for b, count in enumerate(case.batch.label_lengths):
        labels[b, count:] = label
    lengths = (case.batch.logit_lengths, case.batch.label_lengths)
    return tuple(torch.from_numpy(one) for one in (labels, *lengths))


def options(case, dtype=torch.float64, **changed):
    """The keyword arguments of transducer_kd that make the cell of `case`."""
    made = {
        "classes": case.classes,
        "divergence": case.divergence,
        "tail": case.tail,
        "k": case.k,
        "temperature": case.temperature,
        "shift": case.shift,
        "reduction": case.reduction,
        "topology": case.topology,
        "blank": case.batch.blank,
    }
    for name in ("path", "path_lengths", "ranges"):
        if getattr(case, name) is not None:
            made[name] = torch.from_numpy(getattr(case, name))
    if case.weights is not None:
        made["node_weights"] = torch.tensor(case.weights, dtype=dtype)
    return {**made, **changed}


def upstream(case):
    """Weights of the two losses in the sum to be differentiated; (B,) for "none"."""
    if case.reduction != "none":
        return 1.0, 0.7
    batch = len(case.batch.labels)
    return np.linspace(0.5, -1.0, batch), np.linspace(-0.8, 1.5, batch)


def weighted_sum(losses, weights):
    """sum_i <weights_i, losses_i>."""
    total = 0.0
    for loss, weight in zip(losses, weights):
        total = total + (loss * torch.as_tensor(weight, dtype=loss.dtype)).sum()
    return total


def run(
    case, forms=("factored", "factored"), dtype=torch.float64, teacher=None, **changed
):
    """transducer_kd on `case`, forwards and backwards.

    `teacher` replaces the teacher's logits (for example by stored targets).
    """
    student, leaves = side(case, "student", forms[0], dtype)
    if teacher is None:
        teacher, taught = side(case, "teacher", forms[1], dtype)
    else:
        taught = {}
    losses = transducer_kd(
        student, teacher, *lattice_args(case), **options(case, dtype, **changed)
    )
    weighted_sum(losses, upstream(case)).backward()
    assert all(leaf.grad is None for leaf in taught.values()), "teacher got a gradient"
    values = [np.asarray(loss.detach().double()) for loss in losses]
    return Result(*values, {n: np.asarray(x.grad.double()) for n, x in leaves.items()})


@functools.lru_cache(maxsize=None)
def oracle_results(case, form="factored"):
    """The expected result of `run`, from the oracle."""
    transducer, _ = case.transducer
    if case.reduction != "none":
        transducer = transducer.mean()
    grad = case.student_grad(*upstream(case))
    grads = {"logits": grad} if form == "dense" else case.student.backward(grad)
    return Result(transducer, np.asarray(case.kd()[0]), grads)


def assert_results(actual, expected, rtol=1e-9, atol=1e-10, note=""):
    """Both losses and every gradient agree."""
    for name in ("transducer", "kd"):
        one, other = getattr(actual, name), getattr(expected, name)
        assert one.shape == np.shape(other), f"{note} {name}"
        np.testing.assert_allclose(
            one, other, rtol=rtol, atol=atol, err_msg=f"{note} {name}"
        )
    assert actual.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        np.testing.assert_allclose(
            actual.grads[name], grad, rtol=rtol, atol=atol, err_msg=f"{note} d/d{name}"
        )
