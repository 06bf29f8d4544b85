"""FactoredLogits wherever a lattice is accepted: values, gradients, padding and memory.

Against the loops of tests.oracles, against central differences, and against torch's own
differentiation of `.dense()`.
"""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from espnet_kd import lattice
from espnet_kd.lattice import best_path, occupancy, total_score, transducer_loss
from espnet_kd.losses import (
    FactoredLogits,
    StoredLattice,
    collapsed_lattice_kd,
    full_lattice_kd,
    path_kd,
    transducer_kd,
)
from tests import oracles
from tests.losses.grid import (
    ACTIVATIONS,
    BACKENDS,
    CLASSES,
    FORMS,
    SIDES,
    factored,
    lattice_args,
    options,
    side,
)
from tests.oracles import random_case


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def algebra_case(seed, topology, nodes="lattice", **fixed):
    return random_case(seed, nodes, topology=topology, reduction="none", **fixed)


def algebra_options(case, backend):
    made = {"blank": case.batch.blank, "topology": case.topology, "backend": backend}
    if case.ranges is not None:
        made["ranges"] = torch.from_numpy(case.ranges)
    return made


def listed(case):
    """(log P, occupancy, best score) of each utterance, by listing its alignments."""
    results = []
    for b in range(len(case.batch.labels)):
        logits, labels = case.batch.cut(b)
        exits = oracles.exit_log_probs(logits, labels, case.batch.blank)
        if case.ranges is not None:
            exits = oracles.inside_band(exits, case.ranges[b], case.topology)
        results.append(oracles.list_lattice(exits, case.topology))
    return results


def counts(case, b):
    return int(case.batch.logit_lengths[b]), int(case.batch.label_lengths[b])


def part_grads(case, form, grad):
    return {"logits": grad} if form == "dense" else case.student.backward(grad)


def assert_grads(leaves, grads, note="", rtol=1e-9, atol=1e-10):
    for name, leaf in leaves.items():
        np.testing.assert_allclose(
            leaf.grad, grads[name], rtol=rtol, atol=atol, err_msg=f"{note} d/d{name}"
        )


# ------------------------------------------------------------ the lattice functions


def test_lattice_and_losses_share_one_class():
    assert lattice.FactoredLogits is FactoredLogits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu", "identity"])
def test_shape_and_dense(activation, bias):
    case = random_case(1, activation=activation, bias=bias)
    logits, leaves = factored(case.student, case, poison=0.5)
    assert tuple(logits.shape) == case.batch.student.shape
    dense = logits.dense()
    valid = ~case.batch.padding()
    np.testing.assert_allclose(
        dense.detach().numpy()[valid], case.batch.student[valid], rtol=1e-12
    )
    upstream = np.random.default_rng(0).standard_normal(dense.shape)
    upstream[~valid] = 0
    dense.backward(torch.from_numpy(upstream))
    assert_grads(leaves, case.student.backward(upstream))


def test_the_default_is_tanh_without_bias():
    case = random_case(2, activation="tanh", bias=False)
    arrays = [torch.from_numpy(x) for x in case.student.parts().values()]
    logits = FactoredLogits(*arrays)
    np.testing.assert_allclose(logits.dense(), case.batch.student, rtol=1e-12)


def test_a_name_and_a_callable_are_the_same():
    case = random_case(3, activation="tanh")
    arrays = {n: torch.from_numpy(x) for n, x in case.student.parts().items()}
    scores = [
        total_score(
            FactoredLogits(**arrays, activation=activation),
            *lattice_args(case),
            blank=case.batch.blank,
        )
        for activation in ("tanh", torch.tanh, torch.nn.Tanh())
    ]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", ["lattice", "band"])
@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_total_score_and_transducer_loss(topology, nodes, form, backend):
    for seed in (11, 12, 13):
        case = algebra_case(seed, topology, nodes)
        losses, grad = case.transducer
        logits, leaves = side(case, "student", form)
        made = algebra_options(case, backend)
        score = total_score(logits, *lattice_args(case), **made)
        np.testing.assert_allclose(score.detach(), -losses, rtol=1e-9)
        weights = np.linspace(-1.0, 2.0, len(losses))
        (score * torch.from_numpy(weights)).sum().backward()
        weighted = -grad * weights[:, None, None, None]
        assert_grads(leaves, part_grads(case, form, weighted), "score")

        for reduction in ("none", "mean"):
            logits, leaves = side(case, "student", form)
            loss = transducer_loss(
                logits, *lattice_args(case), reduction=reduction, **made
            )
            value = losses if reduction == "none" else losses.mean()
            np.testing.assert_allclose(loss.detach(), value, rtol=1e-9)
            loss.sum().backward()
            share = 1.0 if reduction == "none" else 1.0 / len(losses)
            assert_grads(leaves, part_grads(case, form, grad * share), reduction)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", ["lattice", "band"])
@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_occupancy(topology, nodes, form, backend):
    for seed in (21, 22, 23):
        case = algebra_case(seed, topology, nodes)
        logits, _ = side(case, "student", form)
        made = algebra_options(case, backend)
        actual = occupancy(logits, *lattice_args(case), **made)
        expected = np.zeros((*case.batch.student.shape[:3], 2))
        for b, (_, one, _) in enumerate(listed(case)):
            expected[b, : one.shape[0], : one.shape[1]] = one
        np.testing.assert_allclose(actual.detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodes", ["lattice", "band"])
@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_best_path(topology, nodes, form, backend):
    """Its score is the best of the list, and its nodes are those of one alignment."""
    for seed in (31, 32, 33):
        case = algebra_case(seed, topology, nodes)
        logits, _ = side(case, "student", form)
        made = algebra_options(case, backend)
        path, lengths, score = best_path(logits, *lattice_args(case), **made)
        expected = listed(case)
        np.testing.assert_allclose(
            score.detach(), [one[2] for one in expected], rtol=1e-9
        )
        for b, (_, _, best) in enumerate(expected):
            cut, labels = case.batch.cut(b)
            exits = oracles.exit_log_probs(cut, labels, case.batch.blank)
            walk = [tuple(node) for node in path[b, : lengths[b]].tolist()]
            # the nodes of a modified path do not include the last exit
            assert best == pytest.approx(
                max(
                    oracles.alignment_score(exits, one)
                    for one in oracles.alignments_of(*counts(case, b), case.topology)
                    if [(t, u) for t, u, _ in one] == walk
                )
            )


# ------------------------------------------------------------ the named losses


@pytest.mark.parametrize("student, teacher", SIDES)
@pytest.mark.parametrize("reduction", ["none", "batch", "node"])
@pytest.mark.parametrize("kind", ["collapsed", "full"])
def test_lattice_kd_of_any_mix(kind, reduction, student, teacher):
    loss_of = {"collapsed": collapsed_lattice_kd, "full": full_lattice_kd}[kind]
    for seed in (41, 42):
        case = random_case(seed, "lattice", kind, weighted=False, reduction=reduction)
        logits, leaves = side(case, "student", student)
        taught, frozen = side(case, "teacher", teacher)
        loss = loss_of(
            logits,
            taught,
            *lattice_args(case),
            blank=case.batch.blank,
            temperature=case.temperature,
            reduction=reduction,
        )
        value, nodes = case.kd()
        np.testing.assert_allclose(loss.detach(), value, rtol=1e-9)
        loss.sum().backward()
        grad = oracles.reduced_grad(nodes, case.batch.student.shape, reduction)
        assert_grads(leaves, part_grads(case, student, grad))
        assert all(leaf.grad is None for leaf in frozen.values())


@pytest.mark.parametrize("student, teacher", SIDES)
@pytest.mark.parametrize("reduction", ["none", "batch", "node"])
def test_path_kd_of_any_mix(reduction, student, teacher):
    for seed in (51, 52):
        case = random_case(
            seed, "path shifted", "full", weighted=False, reduction=reduction
        )
        logits, leaves = side(case, "student", student)
        taught, frozen = side(case, "teacher", teacher)
        loss = path_kd(
            logits,
            taught,
            torch.from_numpy(case.path),
            torch.from_numpy(case.path_lengths),
            shift=case.shift,
            student_lengths=torch.from_numpy(case.batch.logit_lengths),
            temperature=case.temperature,
            reduction=reduction,
        )
        value, nodes = case.kd()
        np.testing.assert_allclose(loss.detach(), value, rtol=1e-9)
        loss.sum().backward()
        grad = oracles.reduced_grad(nodes, case.batch.student.shape, reduction)
        assert_grads(leaves, part_grads(case, student, grad))
        assert all(leaf.grad is None for leaf in frozen.values())


# ------------------------------------------------------------ by differentiation


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_gradcheck(nodes, classes, tail):
    """Central differences of both losses in encoder, decoder, weight and bias."""
    case = random_case(
        61, nodes, classes, tail, size=(2, 3, 2), v=4, width=2, k=2, scale=1.0,
        bias=True, activation="tanh", temperature=2.0,
    )  # fmt: skip
    _, leaves = factored(case.student, case, poison=0.0)
    teacher, _ = side(case, "teacher", "factored")

    def losses(*parts):
        student = FactoredLogits(*parts, activation="tanh")
        return transducer_kd(student, teacher, *lattice_args(case), **options(case))

    assert torch.autograd.gradcheck(losses, tuple(leaves.values()))


def test_gradcheck_of_total_score(backend):
    case = algebra_case(62, "regular", "band", size=(2, 3, 2), v=4, width=2, bias=True)
    _, leaves = factored(case.student, case, poison=0.0)

    def score(*parts):
        logits = FactoredLogits(*parts, ACTIVATIONS[case.student.activation])
        return total_score(
            logits, *lattice_args(case), **algebra_options(case, backend)
        )

    assert torch.autograd.gradcheck(score, tuple(leaves.values()))


@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "band", "path shifted"])
def test_factored_is_dense_to_the_last_digits(nodes, classes, tail):
    """torch differentiates `.dense()` itself: gradients to 1e-10."""
    case = random_case(
        71, nodes, classes, tail, size=(3, 9, 3), v=60, k=5, width=6, bias=True
    )
    grads, values = [], []
    for dense in (True, False):
        student, leaves = factored(case.student, case, poison=0.25)
        teacher, _ = factored(case.teacher, case, poison=0.25)
        if dense:
            student, teacher = student.dense(), teacher.dense()
        pair = transducer_kd(student, teacher, *lattice_args(case), **options(case))
        (pair[0].sum() + 0.3 * pair[1].sum()).backward()
        values.append(pair)
        grads.append([leaf.grad for leaf in leaves.values()])
    for one, other in zip((*values[0], *grads[0]), (*values[1], *grads[1])):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_an_activation_that_torch_differentiates():
    """Any callable has a gradient, with a name or without."""
    case = random_case(72, "lattice", "collapsed", bias=True)
    arrays = case.student.parts()
    results = []
    for activation in (torch.nn.functional.silu, lambda x: x * torch.sigmoid(x)):
        for dense in (True, False):
            leaves = [torch.tensor(x, requires_grad=True) for x in arrays.values()]
            student = FactoredLogits(*leaves, activation=activation)
            teacher, _ = side(case, "teacher", "factored")
            pair = transducer_kd(
                student.dense() if dense else student,
                teacher,
                *lattice_args(case),
                **options(case),
            )
            (pair[0].sum() + 2 * pair[1].sum()).backward()
            results.append([*pair, *(leaf.grad for leaf in leaves)])
    for result in results[1:]:
        for one, other in zip(results[0], result):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_flow_on_into_what_made_the_parts():
    """Strided and broadcast parts, a weight used in two places."""
    case = random_case(73, "lattice", "collapsed", bias=True, width=6)
    results = []
    for dense in (True, False):
        base = torch.tensor(case.student.encoder.transpose(2, 0, 1).copy())
        row = torch.tensor(case.student.decoder[:1, :, :1])
        weight = torch.tensor(case.student.weight, requires_grad=True)
        base.requires_grad_()
        row.requires_grad_()
        decoder = row.expand(*case.student.decoder.shape)
        student = FactoredLogits(base.permute(1, 2, 0), decoder, weight, weight[:, 0])
        teacher, _ = side(case, "teacher", "dense")
        pair = transducer_kd(
            student.dense() if dense else student,
            teacher,
            *lattice_args(case),
            **options(case),
        )
        (pair[0].sum() + pair[1].sum()).backward()
        results.append([*pair, base.grad, row.grad, weight.grad])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------ padding


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("label", [-1, 10**9])
@pytest.mark.parametrize("classes, tail", CLASSES)
def test_padding_changes_nothing(classes, tail, label, poison):
    """Any content of padded frames and rows; its own gradient is exactly 0."""
    for nodes in ("lattice", "path"):
        case = random_case(81, nodes, classes, tail, reduction="batch")
        student, leaves = side(case, "student", "factored", poison=poison)
        teacher, _ = side(case, "teacher", "factored", poison=poison)
        pair = transducer_kd(
            student, teacher, *lattice_args(case, label), **options(case)
        )
        assert float(pair[0].detach()) == pytest.approx(
            case.transducer[0].mean(), rel=1e-9
        )
        assert float(pair[1].detach()) == pytest.approx(
            case.kd()[0], rel=1e-9, abs=1e-12
        )
        (pair[0] + pair[1]).backward()
        assert_grads(leaves, case.student.backward(case.student_grad(1.0, 1.0)))
        lengths = zip(case.batch.logit_lengths, case.batch.label_lengths)
        for b, (frames, count) in enumerate(lengths):
            assert (leaves["encoder"].grad[b, frames:] == 0).all()
            assert (leaves["decoder"].grad[b, count + 1 :] == 0).all()


# ------------------------------------------------------------ many chunks


LARGE = dict(batch=3, frames=60, labels=30, classes=1000, width=5)


def naive_kd(student, teacher, ids, classes):
    """KL of every node (B, T, U+1), by torch, from dense logits; top-8 has a tail.

    ids (B, U+1): the label of a row, blank in the last one.
    """
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    if classes != "full":
        keep = torch.zeros_like(log_q, dtype=torch.bool)
        keep[..., 0] = True
        if classes == "topk":
            best = log_q[..., 1:].topk(7, dim=-1).indices + 1
            keep.scatter_(-1, best, True)
        else:
            keep.scatter_(-1, ids[:, None, :, None].expand(*log_q.shape[:3], 1), True)

        def groups(x):
            rest = x.masked_fill(keep, -math.inf).logsumexp(-1, keepdim=True)
            return torch.cat([x.masked_fill(~keep, -1e4), rest], dim=-1)

        log_p, log_q = groups(log_p), groups(log_q)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def naive_score(logits, ids, frames, counts):
    """log P(labels) (B,), frame by frame; row u of a frame includes all rows below."""
    log_p = logits.log_softmax(-1)
    blank = log_p[..., 0]
    label = log_p.gather(-1, ids[:, None, :, None].expand(*blank.shape, 1))[..., 0]
    above = label.cumsum(-1) - label  # labels of the rows below u
    utterance = torch.arange(len(ids))
    alpha, ends = above[:, 0], []
    for t in range(blank.shape[1]):
        if t:
            came = alpha + blank[:, t - 1] - above[:, t]
            alpha = above[:, t] + came.logcumsumexp(-1)
        ends.append(alpha + blank[:, t])
    return torch.stack(ends, 1)[utterance, frames - 1, counts]


@pytest.mark.parametrize(
    "nodes, classes, dtype",
    [
        ("lattice", "full", torch.float32),
        ("lattice", "topk", torch.float32),
        ("lattice", "collapsed", torch.float64),
        ("lattice", "collapsed", torch.float32),
        ("path", "full", torch.float64),
        ("path", "topk", torch.float32),
    ],
    ids=str,
)
def test_a_lattice_of_many_chunks(nodes, classes, dtype):
    """5.6 million logits per side, ragged, against torch's log-softmax and autograd."""
    student, teacher, ids, frames, counts = memory_case(**LARGE, dtype=torch.float64)
    frames, counts = torch.tensor([60, 35, 1]), torch.tensor([30, 0, 17])
    rows = torch.arange(31)
    ids = torch.nn.functional.pad(ids, (0, 1)).masked_fill(rows >= counts[:, None], 0)
    inside = (torch.arange(60)[:, None] < frames[:, None, None]) & (
        rows <= counts[:, None, None]
    )
    made = {"classes": classes}
    if nodes == "path":
        made["path"] = best_path(teacher, ids[:, :30], frames, counts)[0]
        on_path = torch.zeros_like(inside)
        for b, size in enumerate(frames + counts):
            t, u = made["path"][b, :size].T
            on_path[b, t, u] = True
        assert (on_path.sum((1, 2)) == frames + counts).all()

    parts = (student.encoder, student.decoder, student.weight, student.bias)
    score = naive_score(student.dense(), ids, frames, counts)
    kd = naive_kd(student.dense(), teacher.dense(), ids, classes)
    kd = kd[on_path if nodes == "path" else inside].sum() / 3
    target = [-score.mean(), kd]
    grads = torch.autograd.grad(target[0] + 0.1 * kd, parts)

    lean = [part.detach().to(dtype).requires_grad_() for part in parts]
    taught = FactoredLogits(
        *(x.to(dtype) for x in (teacher.encoder, teacher.decoder, teacher.weight)),
        teacher.bias.to(dtype),
    )
    pair = transducer_kd(
        FactoredLogits(*lean), taught, ids[:, :30], frames, counts, **made
    )
    (pair[0] + 0.1 * pair[1]).backward()
    limit = {torch.float64: 1e-9, torch.float32: 1e-4}[dtype]
    for one, other in zip(pair, target):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=limit)
    for part, grad in zip(lean, grads):
        assert (part.grad - grad).abs().max() <= limit * grad.abs().max()


# ------------------------------------------------------------ memory


class Largest(TorchDispatchMode):
    """The most elements that the memory of any result of any operation holds.

    Memory, not shape: a broadcast view of something small is small.
    """

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_flatten(result)[0]:
            if isinstance(one, torch.Tensor):
                size = one.storage().nbytes() // one.element_size()
                self.elements = max(self.elements, size)
        return result


MEMORY = dict(batch=4, frames=80, labels=40, classes=1000, width=4)


def memory_case(batch, frames, labels, classes, width, dtype=torch.float32):
    """Parts of two joints; every utterance is as long as the batch."""
    draw = torch.Generator().manual_seed(0)

    def parts(requires_grad):
        shapes = [(batch, frames, width), (batch, labels + 1, width)]
        shapes += [(classes, width), (classes,)]
        made = [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]
        return FactoredLogits(*(x.requires_grad_(requires_grad) for x in made))

    lengths = (torch.full((batch,), frames), torch.full((batch,), labels))
    ids = torch.randint(1, classes, (batch, labels), generator=draw)
    return parts(True), parts(False), ids, *lengths


def whole(shape):
    return math.prod(shape)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_the_meter_catches_a_dense_joint():
    """Forward, and backward alone."""
    student, *_ = memory_case(batch=2, frames=20, labels=10, classes=100, width=4)
    with Largest() as meter:
        logits = student.dense()
    assert meter.elements >= whole(student.shape)
    scores = logits.logsumexp(-1)
    with Largest() as meter:
        scores.sum().backward()
    assert meter.elements >= whole(student.shape)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("classes, tail", CLASSES)
@pytest.mark.parametrize("nodes", ["lattice", "path"])
def test_no_tensor_of_the_whole_lattice_exists(nodes, classes, tail):
    """Neither forward nor backward, on either side, at 13 million logits per side."""
    student, teacher, *rest = memory_case(**MEMORY)
    made = {"classes": classes, "tail": tail}
    if nodes == "path":
        made["path"] = best_path(teacher, *rest)[0]
    with Largest() as meter:
        losses = transducer_kd(student, teacher, *rest, **made)
        (losses[0] + losses[1]).backward()
    assert student.weight.grad.abs().max() > 0
    assert meter.elements < whole(student.shape) / 2


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("what", ["score", "occupancy", "path", "stored"])
def test_no_tensor_of_the_whole_lattice_exists_elsewhere(what):
    student, _, *rest = memory_case(**MEMORY)
    with Largest() as meter:
        if what == "score":
            total_score(student, *rest).sum().backward()
        elif what == "occupancy":
            occupancy(student, *rest)
        elif what == "path":
            best_path(student, *rest)
        else:
            stored = torch.full(student.shape[:3], -1.0)
            losses = transducer_kd(student, StoredLattice(stored, stored), *rest)
            (losses[0] + losses[1]).backward()
    assert meter.elements < whole(student.shape) / 2


PEAK = """
import re, sys
from pathlib import Path
import torch
from tests.losses.test_factored_oracle import MEMORY, memory_case
from espnet_kd.losses import transducer_kd

def step(size, dense):
    student, teacher, *rest = memory_case(**size)
    if dense:
        student, teacher = student.dense(), teacher.dense()
    sum(transducer_kd(student, teacher, *rest)).backward()

def peak():
    # not ru_maxrss, which a child inherits
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])

step(dict(batch=1, frames=3, labels=2, classes=5, width=4), False)  # late imports
before = peak()
step(MEMORY, sys.argv[1] == "dense")
print(peak() - before)
"""


def peak_bytes(form):
    """Memory that a child process takes for one forward and backward."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, form],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="/proc has the peak of memory"
)
def test_nor_do_its_pieces_add_up_to_it():
    """The tensors kept from forward to backward do not add up to the lattice."""
    shape = [MEMORY["batch"], MEMORY["frames"], MEMORY["labels"] + 1, MEMORY["classes"]]
    one = 4 * whole(shape)  # bytes of the logits of one side
    assert peak_bytes("dense") > 2 * one
    assert peak_bytes("factored") < one
