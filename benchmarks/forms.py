"""The competing forms of each loss.

A form takes a `Problem` and gives one scalar, ready for backward(). Forms of one kind
compute the same number: the transducer loss, and for most kinds a KL from the teacher,
both summed over nodes and divided by B.

    naive           logits and log-softmax of both models written out, and the
                    transducer loss of torchaudio or k2 on the student's logits
    dense           logits written out, reduced by log-sum-exp, plain autograd
    checkpointed    dense in runs of frames, each recomputed in the backward pass
    ours            espnet_kd.losses.transducer_kd on FactoredLogits
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.problems import TOP_K, Problem, collapse, frame_chunks
from espnet_kd.lattice import best_path, triton_kernels
from espnet_kd.lattice.nodes import make_layout
from espnet_kd.losses import lattice_losses, transducer_kd

# ---- transducer loss of dense logits


def torchaudio_loss(logits: Tensor, labels: Tensor, problem: Problem) -> Tensor:
    from torchaudio.functional import rnnt_loss

    lengths = (problem.frames.int(), problem.label_lengths.int())
    total = rnnt_loss(logits, labels.int(), *lengths, blank=0, reduction="sum")
    return total / len(labels)


def k2_boundary(problem: Problem) -> Tensor:
    start = torch.zeros_like(problem.frames)
    return torch.stack([start, start, problem.label_lengths, problem.frames], dim=1)


def k2_loss(logits: Tensor, labels: Tensor, problem: Problem) -> Tensor:
    import k2

    boundary = k2_boundary(problem)
    total = k2.rnnt_loss(logits, labels, 0, boundary=boundary, reduction="sum")
    return total / len(labels)


def loss_of_classes(classes: Tensor, problem: Problem) -> Tensor:
    """Of {blank, label, rest} (B, T, U+1, 3), by k2 if installed, else torchaudio."""
    label = torch.ones_like(problem.labels)
    try:
        return k2_loss(classes, label, problem)
    except ImportError:
        return torchaudio_loss(classes, label, problem)


# ---- KL of dense log-probabilities


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher.exp() * (teacher - student)).sum(-1)


def sum_nodes(losses: Tensor, valid: Tensor) -> Tensor:
    return losses.masked_fill(~valid, 0).sum() / len(losses)


def full_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    return sum_nodes(kl(teacher, student), problem.nodes)


def collapsed_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    next_labels = problem.next_labels.unsqueeze(1)
    losses = kl(collapse(teacher, next_labels), collapse(student, next_labels))
    return sum_nodes(losses, problem.nodes)


def complement_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    """`collapsed_kd` with rest = 1 - blank - label: cheaper, wrong in a peaky model."""
    label = problem.next_labels.unsqueeze(1).expand(student.shape[:3])
    absent = label == 0

    def classes(log_probs: Tensor) -> Tensor:
        blank, y = log_probs[..., 0], log_probs.gather(-1, label[..., None])[..., 0]
        y = y.masked_fill(absent, -1e30)
        rest = torch.log1p(-(blank.exp() + y.exp()).clamp(max=1 - 1e-6))
        return torch.stack([blank, y, rest], dim=-1)

    return sum_nodes(kl(classes(teacher), classes(student)), problem.nodes)


def weighted_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    next_labels = problem.next_labels.unsqueeze(1)
    losses = kl(collapse(teacher, next_labels), collapse(student, next_labels))
    return sum_nodes(losses * problem.node_weights, problem.nodes)


def buckets(log_probs: Tensor, ids: Tensor) -> Tensor:
    """K classes and the sum of all others, (..., K+1)."""
    rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest], dim=-1)


def likely_classes(teacher: Tensor) -> Tensor:
    """(..., K) ids of blank and the K-1 likeliest other classes."""
    others = teacher[..., 1:].topk(TOP_K - 1, dim=-1).indices + 1
    return functional.pad(others, (1, 0))


def topk_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    ids = likely_classes(teacher)
    return sum_nodes(kl(buckets(teacher, ids), buckets(student, ids)), problem.nodes)


def on_path(student: Tensor, teacher: Tensor, problem: Problem) -> tuple:
    """Log-probabilities (B, N, V) of both, and which nodes are not padding."""
    classes = collapse(teacher, problem.next_labels.unsqueeze(1))
    labels = torch.ones_like(problem.labels)
    path, lengths, _ = best_path(classes, labels, *problem.lattice[1:])
    b = torch.arange(len(path), device=path.device).unsqueeze(1)
    valid = torch.arange(path.shape[1], device=path.device) < lengths.unsqueeze(1)
    t, u = path.unbind(-1)
    return student[b, t, u], teacher[b, t, u], valid


def path_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    student, teacher, valid = on_path(student, teacher, problem)
    return sum_nodes(kl(teacher, student), valid)


def path_topk_kd(student: Tensor, teacher: Tensor, problem: Problem) -> Tensor:
    student, teacher, valid = on_path(student, teacher, problem)
    ids = likely_classes(teacher)
    return sum_nodes(kl(buckets(teacher, ids), buckets(student, ids)), valid)


# ---- forms


def naive(problem: Problem, rnnt: Callable, kd: Callable | None = None) -> Tensor:
    student = problem.student.dense()
    loss = rnnt(student, problem.labels, problem)
    if kd is None:
        return loss
    with torch.no_grad():
        teacher = problem.teacher.dense().log_softmax(-1)
    return loss + kd(student.log_softmax(-1), teacher, problem)


def dense(problem: Problem, kd: bool, in_chunks: bool = False) -> Tensor:
    next_labels = problem.next_labels.unsqueeze(1)

    def classes_of(encoder: Tensor, logits) -> Tensor:
        logits = replace(logits, encoder=encoder).dense()
        return collapse(logits, next_labels, in_place=True)

    def classes(logits) -> Tensor:
        if not in_chunks:
            return classes_of(logits.encoder, logits)
        runs = [logits.encoder[:, part] for part in frame_chunks(logits)]
        runs = [checkpoint(classes_of, x, logits, use_reentrant=False) for x in runs]
        return torch.cat(runs, dim=1)

    student = classes(problem.student)
    loss = loss_of_classes(student, problem)
    if not kd:
        return loss
    with torch.no_grad():
        teacher = classes(problem.teacher)
    return loss + sum_nodes(kl(teacher, student), problem.nodes)


def ours(problem: Problem, backend: str, teacher: str = "teacher", **options):
    """``teacher``: the attribute of the problem that is its lattice."""
    transducer, kd = transducer_kd(
        problem.student,
        getattr(problem, teacher),
        *problem.lattice,
        backend=backend,
        **options,
    )
    return transducer + kd


def ours_transducer(problem: Problem, backend: str, tolerance: float = 0.0) -> Tensor:
    layout = make_layout(problem.student, *problem.lattice)
    options = {"backend": backend, "tolerance": tolerance}
    return lattice_losses(problem.student, layout, [], **options)[0].mean()


def ours_weighted(problem: Problem, backend: str, tolerance: float = 0.0) -> Tensor:
    weights = problem.node_weights
    return ours(problem, backend, node_weights=weights, tolerance=tolerance)


def ours_band(problem: Problem, backend: str) -> Tensor:
    return ours(problem, backend, ranges=problem.ranges)


def ours_path(problem: Problem, backend: str, **options) -> Tensor:
    """The teacher's path is found first, by a pass over its whole lattice."""
    path, lengths, _ = best_path(problem.teacher, *problem.lattice, backend=backend)
    return ours(problem, backend, path=path, path_lengths=lengths, **options)


def ours_stored_path(problem: Problem, backend: str, **options) -> Tensor:
    path = {"path": problem.path, "path_lengths": problem.path_lengths}
    return ours(problem, backend, "stored_path", **path, **options)


def k2_band(problem: Problem) -> Tensor:
    """k2's pruned loss and naive KD on the same nodes."""
    import k2

    ranges = problem.ranges

    def logits(joint) -> Tensor:
        pruned = k2.do_rnnt_pruning(joint.encoder, joint.decoder, ranges)
        return functional.linear(torch.tanh(sum(pruned)), joint.weight, joint.bias)

    student = logits(problem.student)
    loss = k2.rnnt_loss_pruned(
        student,
        problem.labels,
        ranges,
        0,
        boundary=k2_boundary(problem),
        reduction="sum",
    )
    with torch.no_grad():
        teacher = logits(problem.teacher).log_softmax(-1)
    rows = problem.next_labels.unsqueeze(1).expand(*student.shape[:2], -1)
    next_labels, valid = rows.gather(2, ranges), problem.nodes.gather(2, ranges)
    losses = kl(
        collapse(teacher, next_labels), collapse(student.log_softmax(-1), next_labels)
    )
    return loss / len(losses) + sum_nodes(losses, valid)


def after_simple_loss(form: Callable, problem: Problem) -> Tensor:
    """k2's whole pruned step: its simple loss gives the band to a form."""
    import k2

    encoder, decoder = problem.student.tensors[:2]
    boundary = k2_boundary(problem)
    simple, arcs = k2.rnnt_loss_smoothed(
        functional.linear(decoder, problem.simple[1]),
        functional.linear(encoder, problem.simple[0]),
        problem.labels,
        0,
        lm_only_scale=0.25,
        am_only_scale=0.0,
        boundary=boundary,
        reduction="sum",
        return_grad=True,
    )
    width = problem.ranges.shape[2]
    ranges = k2.get_rnnt_prune_ranges(*arcs, boundary, width)
    return simple / len(boundary) + form(replace(problem, ranges=ranges))


# ---- which forms are compared


class Form(NamedTuple):
    run: Callable[[Problem], Tensor]
    reads_teacher: bool = True  # False: its targets are stored, or it has no teacher
    triton: bool | None = None  # None: where the package would use it
    exact: bool = True  # False: its gradient may differ, by what the table shows


class Kind(NamedTuple):
    title: str
    forms: dict[str, Form]
    nodes: str = "lattice"  # which the student's joint network must visit, or "band"


# The others are compared with the first of these that ran.
OURS = ("ours, Triton", "ours, k2", "ours, torch")


@contextmanager
def kernels(enabled: bool | None) -> Iterator[None]:
    """Run the package with or without its Triton kernels."""
    usable = triton_kernels.usable
    if enabled and not usable(torch.device("cuda"), torch.float32, 2):
        raise RuntimeError("the Triton kernels cannot be used here")
    if enabled is False:
        triton_kernels.usable = lambda *args: False
    try:
        yield
    finally:
        triton_kernels.usable = usable


def engines(form: Callable, reads_teacher: bool = True, **options) -> dict[str, Form]:
    """Ours on each engine."""

    def by(backend: str | None, triton: bool) -> Form:
        return Form(partial(form, backend=backend, **options), reads_teacher, triton)

    return {
        "ours, torch": by("torch", False),
        "ours, k2": by("k2", False),
        "ours, Triton": by(None, True),
    }


def naives(kd: Callable | None) -> dict[str, Form]:
    return {
        "naive, k2": Form(partial(naive, rnnt=k2_loss, kd=kd), kd is not None),
        "naive, torchaudio": Form(
            partial(naive, rnnt=torchaudio_loss, kd=kd), kd is not None
        ),
    }


def stored(form: Callable, **options) -> dict[str, Form]:
    options = {"backend": None, **options}
    return {"ours, stored targets": Form(partial(form, **options), False)}


def tolerances(form: Callable, reads_teacher: bool) -> dict[str, Form]:
    return {
        f"ours, tolerance {x:g}": Form(
            partial(form, backend=None, tolerance=x), reads_teacher, exact=False
        )
        for x in (1e-5, 1e-3)
    }


KINDS = {
    "collapsed": Kind(
        "Transducer loss and KL over {label, blank, rest} at all nodes",
        {
            **naives(collapsed_kd),
            "dense": Form(partial(dense, kd=True)),
            "checkpointed": Form(partial(dense, kd=True, in_chunks=True)),
            **engines(ours),
            **stored(ours, teacher="stored_lattice"),
        },
    ),
    "complement": Kind(
        "As above, the naive forms with rest = 1 - label - blank",
        {**naives(complement_kd), **engines(ours)},
    ),
    "path": Kind(
        "Transducer loss and KL over all classes on the teacher's best path",
        {**naives(path_kd), **engines(ours_path, classes="full")},
    ),
    "path_topk": Kind(
        f"Transducer loss and KL over top-{TOP_K} + tail on the teacher's best path",
        {
            **naives(path_topk_kd),
            **engines(ours_path, classes="topk", k=TOP_K),
            **stored(ours_stored_path, classes="topk", k=TOP_K),
        },
    ),
    "full": Kind(
        "Transducer loss and KL over all classes at all nodes",
        {**naives(full_kd), **engines(ours, classes="full")},
    ),
    "topk": Kind(
        f"Transducer loss and KL over top-{TOP_K} + tail at all nodes",
        {**naives(topk_kd), **engines(ours, classes="topk", k=TOP_K)},
    ),
    "transducer": Kind(
        "Transducer loss alone",
        {
            **naives(None),
            "dense": Form(partial(dense, kd=False), False),
            "checkpointed": Form(partial(dense, kd=False, in_chunks=True), False),
            **engines(ours_transducer, reads_teacher=False),
            **tolerances(ours_transducer, False),
        },
    ),
    "weighted": Kind(
        "Transducer loss and collapsed KL weighted by the teacher's posterior",
        {
            **naives(weighted_kd),
            **engines(ours_weighted),
            **tolerances(ours_weighted, True),
        },
    ),
    "band": Kind(
        "Transducer loss and collapsed KL on a given band of 5 rows",
        {"k2 pruned, naive KD": Form(k2_band), **engines(ours_band)},
        "band",
    ),
    "pruned": Kind(
        "k2's simple loss, its band of 5 rows, transducer loss and collapsed KL there",
        {
            "k2 pruned, naive KD": Form(partial(after_simple_loss, k2_band)),
            "ours, k2": Form(
                partial(after_simple_loss, partial(ours_band, backend="k2")),
                triton=False,
            ),
        },
        "band",
    ),
}
