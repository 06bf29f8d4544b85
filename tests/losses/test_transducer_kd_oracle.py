"""Every cell nodes x classes of transducer_kd against the loops of tests.oracles.

Each cell on random mixtures of lengths (one frame, no label among them), V, blank, k,
temperature, activation, bias, joint widths, weights and reductions, both sides dense or
factored, NaN and -1 in all padding.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_kd.losses import StoredLattice, StoredPath, transducer_kd
from tests import oracles
from tests.losses.grid import (
    BACKENDS,
    CLASSES,
    FORMS,
    NODES,
    SIDES,
    assert_results,
    dense,
    lattice_args,
    options,
    oracle_results,
    run,
    side,
    upstream,
    weighted_sum,
)
from tests.oracles import random_case

SEEDS = range(3)
# cells at V = 1000: (nodes, classes, tail)
LARGE = [
    ("lattice", "full", "bucket"),
    ("band", "topk", "bucket"),
    ("path shifted", "topk", "renormalize"),
    ("lattice", "collapsed", "bucket"),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def check_all_sides(case, **changed):
    for forms in SIDES:
        actual = run(case, forms, **changed)
        assert_results(actual, oracle_results(case, forms[0]), note=str(forms))


# ------------------------------------------------------------ the references themselves


@pytest.mark.parametrize("topology", ["regular", "modified"])
@pytest.mark.parametrize("nodes", ["lattice", "band"])
def test_the_reference_gradients_are_finite_differences(nodes, topology):
    """Of the transducer loss, of the KD loss, and through the joint network."""
    case = random_case(
        5, nodes, "topk", size=(2, 3, 2), v=4, width=2, k=2, weighted=True,
        topology=topology, reduction="batch", temperature=2.0, activation="tanh",
        bias=True,
    )  # fmt: skip

    def value(name, x):
        joint = replace(case.student, **{name: x})
        moved = replace(
            case, student=joint, batch=replace(case.batch, student=joint.logits())
        )
        return moved.transducer[0].mean() + 0.7 * moved.kd()[0]

    grads = case.student.backward(case.student_grad(1.0, 0.7))
    assert set(grads) == {"encoder", "decoder", "weight", "bias"}
    for name, grad in grads.items():
        part = getattr(case.student, name)
        numeric = oracles.central_difference(lambda x, n=name: value(n, x), part)
        np.testing.assert_allclose(grad, numeric, atol=1e-8, err_msg=name)


def test_the_reference_lattices_agree():
    """Listing and sweep, in a band too; a modified alignment has one exit per frame."""
    narrow = 0
    for seed in range(20):
        case = random_case(seed, "band", v=4)
        for b, rows in enumerate(case.ranges):
            logits, labels = case.batch.cut(b)
            exits = oracles.exit_log_probs(logits, labels, case.batch.blank)
            banded = oracles.inside_band(exits, rows, "regular")
            narrow += (np.isfinite(exits) & ~np.isfinite(banded)).any()
            listed = oracles.list_lattice(banded, "regular")
            for one, other in zip(listed, oracles.sweep_lattice(banded)):
                np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
    assert narrow > 10  # most bands leave something out
    everything = list(oracles.alignments_of(4, 2, "modified"))
    assert len(everything) == math.comb(4, 2)
    assert all([t for t, _, _ in one] == [0, 1, 2, 3] for one in everything)
    assert [u for _, u, _ in everything[0]] == [0, 1, 2, 2]


# ------------------------------------------------------------------- the cells


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", NODES)
def test_cell(nodes, classes, tail, seed, backend):
    check_all_sides(random_case(seed, nodes, classes, tail), backend=backend)


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_modified_topology(nodes, classes, tail, backend):
    """Every frame emits blank or one label; a path has one node per frame."""
    for seed in (11, 12):
        case = random_case(seed, nodes, classes, tail, topology="modified")
        check_all_sides(case, backend=backend)


@pytest.mark.parametrize("nodes, classes, tail", LARGE)
def test_a_thousand_classes(nodes, classes, tail, backend):
    case = random_case(21, nodes, classes, tail, v=1000, size=(2, 3, 2), k=8, scale=1.5)
    for forms in (("factored", "factored"), ("dense", "dense")):
        actual = run(case, forms, backend=backend)
        assert_results(actual, oracle_results(case, forms[0]), note=str(forms))


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize(
    "size, v",
    [((2, 3, 2), 2), ((2, 3, 2), 3), ((1, 1, 0), 5), ((3, 1, 2), 4), ((2, 4, 0), 3)],
    ids=str,
)
def test_the_smallest_lattices(size, v, classes, tail, backend):
    """V of label and blank alone; one frame; no label in the whole batch."""
    for nodes in ("lattice", "path"):
        case = random_case(31, nodes, classes, tail, size=size, v=v)
        check_all_sides(case, backend=backend)


@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_joint_networks(activation, bias, temperature):
    for nodes, (classes, tail) in zip(NODES, CLASSES):
        case = random_case(
            41, nodes, classes, tail, activation=activation, bias=bias,
            temperature=temperature,
        )  # fmt: skip
        check_all_sides(case)


def test_every_setting_was_drawn():
    """The random mixtures above cover what the module docstring lists."""
    cases = [
        random_case(seed, nodes, *cell)
        for seed in SEEDS
        for nodes in NODES
        for cell in CLASSES
    ]
    assert {case.temperature for case in cases} == {1.0, 2.0}
    assert {case.reduction for case in cases} == {"batch", "node", "none"}
    assert {case.student.activation for case in cases} == {"tanh", "relu", "identity"}
    assert {case.student.bias is None for case in cases} == {True, False}
    assert {case.weights is None for case in cases} == {True, False}
    assert {case.shift for case in cases} == {0, 1, 2}
    assert len({case.batch.student.shape[-1] for case in cases}) >= 3


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["path", "path shifted"])
def test_a_path_beside_a_band(nodes, classes, tail, backend):
    """The KD loss is the path's, wherever it goes, the transducer loss the band's."""
    left = 0
    for seed in range(5):
        case = random_case(seed, nodes, classes, tail, size=(2, 6, 3))
        ranges = oracles.random_ranges(np.random.default_rng(seed), case.batch)
        left += sum(int(u) not in ranges[b, t] for b, t, u in case.nodes())
        check_all_sides(replace(case, ranges=ranges), backend=backend)
    assert left  # some path leaves its band


def test_bands_of_any_rows(backend):
    """A row may occur twice in a band; bands need not be contiguous or sorted."""
    case = random_case(51, "lattice", "collapsed", size=(2, 4, 3), v=5, weighted=False)
    ranges = np.zeros((2, 4, 3), dtype=int)
    frames, counts = case.batch.logit_lengths, case.batch.label_lengths
    assert (frames.tolist(), counts.tolist()) == ([4, 1], [3, 0])
    ranges[0] = [[1, 0, 0], [1, 1, 3], [2, 1, 0], [2, 3, 3]]
    ranges[1, 0] = [0, 0, 2]  # a row that the utterance does not have
    check_all_sides(replace(case, ranges=ranges), backend=backend)


@pytest.mark.parametrize("shift", [-1, 1, 4, 100])
@pytest.mark.parametrize("nodes", ["lattice", "path"])
def test_shifts(nodes, shift):
    """Nodes outside the student's frames are dropped: value, gradient and count."""
    for seed, reduction in enumerate(("node", "batch", "none")):
        case = random_case(
            60 + seed, nodes, "full", shift=shift, size=(3, 4, 2), reduction=reduction
        )
        check_all_sides(case)


# ------------------------------------------------------------ reductions and weights


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", ["none", "batch", "node"])
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_reductions_and_node_weights(nodes, reduction, weighted):
    for classes, tail in CLASSES:
        case = random_case(
            71, nodes, classes, tail, reduction=reduction, weighted=weighted
        )
        check_all_sides(case)


def test_the_defaults():
    """Collapsed on a lattice, full on a path of T_b + U_b nodes; 8 classes, a tail.

    And blank 0, temperature 1, no shift, sum over nodes / B.
    """
    made = {"temperature": 1.0, "reduction": "batch", "blank": 0, "weighted": False}
    for nodes, classes in (("lattice", "collapsed"), ("path", "full")):
        case = random_case(81, nodes, classes, **made)
        (student, leaves), (teacher, _) = (
            side(case, which, "factored") for which in ("student", "teacher")
        )
        path = {} if case.path is None else {"path": torch.from_numpy(case.path)}
        losses = transducer_kd(student, teacher, *lattice_args(case), **path)
        expected = oracle_results(case)
        for loss, value in zip(losses, expected[:2]):
            assert loss.shape == ()
            np.testing.assert_allclose(loss.detach(), value, rtol=1e-9)
    case = random_case(82, "lattice", "topk", "bucket", v=40, **{**made, "k": 8})
    args = (dense(case.batch.student, case)[0], dense(case.batch.teacher, case)[0])
    kd = transducer_kd(*args, *lattice_args(case), classes="topk")[1]
    np.testing.assert_allclose(kd.detach(), case.kd()[0], rtol=1e-9)


# ------------------------------------------------------------ the two losses


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", [("band", "collapsed"), ("path", "full")], ids=str)
def test_each_loss_alone_and_both(cell, form, backend):
    """Only what is requested is differentiated; a sum gives the sum of gradients."""
    case = random_case(91, *cell, size=(3, 5, 3), v=7, reduction="batch")
    for a, b in ((1.0, None), (None, 1.0), (0.3, -2.0), (0.0, 1.0)):
        student, leaves = side(case, "student", form)
        teacher, _ = side(case, "teacher", form)
        transducer, kd = transducer_kd(
            student, teacher, *lattice_args(case), **options(case, backend=backend)
        )
        parts = [x * y for x, y in ((a, transducer), (b, kd)) if x is not None]
        sum(parts).backward()
        grad = case.student_grad(a or 0.0, b or 0.0)
        grads = {"logits": grad} if form == "dense" else case.student.backward(grad)
        for name, leaf in leaves.items():
            np.testing.assert_allclose(
                leaf.grad, grads[name], rtol=1e-9, atol=1e-10, err_msg=f"{a} {b} {name}"
            )


@pytest.mark.parametrize("form", FORMS)
def test_backward_twice_through_one_graph(form):
    case = random_case(92, "lattice", "collapsed", reduction="batch")
    student, leaves = side(case, "student", form)
    teacher, _ = side(case, "teacher", form)
    losses = transducer_kd(student, teacher, *lattice_args(case), **options(case))
    parts = list(leaves.values())
    grads = [
        torch.autograd.grad(loss, parts, retain_graph=True)
        for loss in (*losses, 2 * losses[0] + 3 * losses[1])
    ]
    for one, other, both in zip(*grads):
        torch.testing.assert_close(2 * one + 3 * other, both, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("leaf", ["encoder", "decoder", "weight", "bias"])
def test_frozen_parts(leaf):
    """Only one part of the joint network learns; the others have no gradient."""
    case = random_case(93, "lattice", "collapsed", bias=True)
    student, leaves = side(case, "student", "factored")
    for name, one in leaves.items():
        one.requires_grad_(name == leaf)
    teacher, _ = side(case, "teacher", "factored")
    losses = transducer_kd(student, teacher, *lattice_args(case), **options(case))
    weighted_sum(losses, upstream(case)).backward()
    expected = oracle_results(case).grads[leaf]
    np.testing.assert_allclose(leaves[leaf].grad, expected, rtol=1e-9, atol=1e-10)
    assert all((one.grad is None) == (name != leaf) for name, one in leaves.items())


def test_no_grad_gives_the_values():
    case = random_case(94, "band", "topk", "renormalize")
    student, _ = side(case, "student", "factored")
    teacher, _ = side(case, "teacher", "dense")
    with torch.no_grad():
        losses = transducer_kd(student, teacher, *lattice_args(case), **options(case))
    for loss, value in zip(losses, oracle_results(case)):
        assert not loss.requires_grad
        np.testing.assert_allclose(loss, value, rtol=1e-9)


# ------------------------------------------------------------ tolerance


def peaky_case(seed, nodes="lattice", **fixed):
    """Logits so large, and KD at so few nodes, that most carry next to no gradient."""
    fixed = {"size": (3, 6, 3), "v": 7, "scale": 6.0, "reduction": "batch", **fixed}
    case = random_case(seed, nodes, "collapsed", weighted=False, **fixed)
    weights = np.zeros(case.batch.student.shape[:3])
    weights[:, 0, 0] = 1.0
    return replace(case, weights=weights)


def tolerance_bound(case, tolerance):
    """How far gradients may move where nodes with |dz_k| <= tolerance are skipped.

    dW = sum g h', db = sum g, and e_t gets the sum over u of f'(a) * (W' g), d_u that
    over t. All activations here have a slope of at most 1.
    """
    nodes = ~case.batch.padding()
    columns = np.abs(case.student.weight).sum(0)
    f, _ = oracles.ACTIVATIONS[case.student.activation]
    encoder, decoder = case.student.encoder, case.student.decoder
    hidden = np.abs(f(encoder[:, :, None] + decoder[:, None]))
    return {
        "encoder": tolerance * nodes.sum(2)[..., None] * columns,
        "decoder": tolerance * nodes.sum(1)[..., None] * columns,
        "weight": tolerance * hidden[nodes].sum(0)[None],
        "bias": tolerance * nodes.sum(),
        "logits": tolerance,
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tolerance", [1e-6, 1e-3, 1e-2])
def test_tolerance_bounds_the_error_of_the_gradients(tolerance, form):
    """A skipped node loses at most `tolerance` of the gradient of each logit."""
    moved = False
    for seed, activation in enumerate(("tanh", "relu", "identity")):
        for nodes in ("lattice", "band"):
            case = peaky_case(seed, nodes, activation=activation)
            exact = oracle_results(case, form)
            actual = run(case, (form, "factored"), tolerance=tolerance)
            np.testing.assert_allclose(actual.transducer, exact.transducer, rtol=1e-9)
            np.testing.assert_allclose(actual.kd, exact.kd, rtol=1e-9)
            for name, bound in tolerance_bound(case, tolerance).items():
                if name in exact.grads:
                    error = np.abs(actual.grads[name] - exact.grads[name])
                    assert (error <= bound + 1e-9).all(), (name, (error - bound).max())
                    moved = moved or (error > 1e-9).any()
    assert moved or form == "dense" or tolerance < 1e-2


def test_no_node_is_above_a_huge_tolerance():
    """It does skip: the gradient of the factored joint is then 0."""
    result = run(peaky_case(3), tolerance=1e9)
    assert all((grad == 0).all() for grad in result.grads.values())
    exact = oracle_results(peaky_case(3))
    assert all((grad != 0).any() for grad in exact.grads.values())


def test_tolerance_zero_is_exact():
    """Down to nodes that carry a gradient of 1e-30 and less."""
    case = peaky_case(4, scale=40.0, activation="identity")
    smallest = np.abs(case.student_grad(1.0, 0.7)).max(-1)[~case.batch.padding()]
    assert 0 < smallest[smallest > 0].min() < 1e-30
    for forms in SIDES:
        expected = oracle_results(case, forms[0])
        assert_results(run(case, forms, tolerance=0.0), expected, note=str(forms))


# ------------------------------------------------------------ stored teachers


def stored_lattice(case, dtype=torch.float64, void=math.nan):
    """log p(blank), log p(label) of the teacher's nodes; `void` where missing."""
    batch = case.batch
    made = np.full((2, *batch.teacher.shape[:3]), void)
    for b in range(len(batch.labels)):
        logits, labels = batch.cut(b, batch.teacher)
        exits = oracles.exit_log_probs(logits, labels, batch.blank)
        exits[~np.isfinite(exits)] = void  # no label leaves the last row
        made[:, b, : exits.shape[0], : exits.shape[1]] = np.moveaxis(exits, -1, 0)
    return StoredLattice(*torch.tensor(made, dtype=dtype))


def stored_path(case, dtype=torch.float64):
    """The k best classes of the teacher's path nodes, blank among them."""
    batch = case.batch
    log_probs = np.full((*case.path.shape[:2], case.k), math.nan)
    ids = np.full(log_probs.shape, -1)
    for b, size in enumerate(case.path_lengths):
        for n, (t, u) in enumerate(case.path[b, :size]):
            log_q = oracles.log_softmax(batch.teacher[b, t, u], case.temperature)
            ids[b, n] = oracles.topk_classes(log_q, case.k, [batch.blank])
            log_probs[b, n] = log_q[ids[b, n]]
    return StoredPath(torch.tensor(log_probs, dtype=dtype), torch.from_numpy(ids))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", NODES)
def test_a_stored_lattice_is_its_teacher(nodes, form, backend):
    for seed in (101, 102):
        case = random_case(seed, nodes, "collapsed", temperature=1.0)
        for void in (math.nan, -math.inf, 0.0):
            teacher = stored_lattice(case, void=void)
            actual = run(case, (form, None), teacher=teacher, backend=backend)
            assert_results(
                actual, oracle_results(case, form), rtol=1e-8, note=str(void)
            )


@pytest.mark.parametrize("v", [2, 3, 1000])
def test_a_stored_lattice_of_few_and_of_many_classes(v):
    case = random_case(103, "lattice", "collapsed", v=v, temperature=1.0, scale=1.0)
    actual = run(case, ("factored", None), teacher=stored_lattice(case))
    assert_results(actual, oracle_results(case), rtol=1e-8)


def test_a_stored_lattice_in_half_precision():
    """Targets of fp16: their exact values, in float32."""
    case = random_case(104, "lattice", "collapsed", temperature=1.0, scale=1.0, v=12)
    half = stored_lattice(case, dtype=torch.float16)
    same = StoredLattice(half.blank.double(), half.label.double())
    expected = run(case, ("factored", None), teacher=same)
    actual = run(case, ("factored", None), dtype=torch.float32, teacher=half)
    assert_results(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("nodes", ["path", "path shifted"])
def test_a_stored_path_is_its_teacher(nodes, tail, form, backend):
    """At any temperature: the stored values carry theirs, the student is divided."""
    for seed in (111, 112, 113):
        for temperature in (1.0, 2.0):
            case = random_case(seed, nodes, "topk", tail, temperature=temperature)
            teacher = stored_path(case)
            actual = run(case, (form, None), teacher=teacher, backend=backend)
            assert_results(actual, oracle_results(case, form), rtol=1e-8)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_a_stored_path_in_half_precision(tail):
    case = random_case(115, "path", "topk", tail, v=12, k=4, scale=1.0)
    half = stored_path(case, dtype=torch.float16)
    same = StoredPath(half.log_probs.double(), half.ids)
    expected = run(case, ("factored", None), teacher=same)
    actual = run(case, ("factored", None), dtype=torch.float32, teacher=half)
    assert_results(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_stored_path_of_all_classes_is_the_full_one():
    for tail in ("bucket", "renormalize"):
        case = random_case(114, "path", "topk", tail, v=7, k=7)
        actual = run(case, ("factored", None), teacher=stored_path(case))
        full = replace(case, classes="full")
        assert_results(actual, oracle_results(full), rtol=1e-8)
