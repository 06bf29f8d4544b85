"""The named losses of a transducer lattice: `transducer_kd` and its cells."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.lattice.logits import Logits
from espnet_kd.lattice.masks import check_lengths
from espnet_kd.lattice.nodes import make_layout
from espnet_kd.losses.classes import ClassSet, Collapsed, Full, class_set
from espnet_kd.losses.divergences import Divergence
from espnet_kd.losses.lattice import LatticeTerm, lattice_losses
from espnet_kd.losses.nodes import later, path_nodes, reduce_sums
from espnet_kd.losses.teachers import (
    PathTeacher,
    StoredLattice,
    StoredPath,
    as_teacher,
    check_frames,
    check_teacher_shape,
)


def transducer_kd(
    student: Logits,
    teacher: Logits | StoredLattice | StoredPath,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    path: Tensor | None = None,
    path_lengths: Tensor | None = None,
    ranges: Tensor | None = None,
    classes: str | ClassSet | None = None,
    divergence: str | Divergence = "kl",
    temperature: float = 1.0,
    k: int = 8,
    tail: str = "bucket",
    shift: int = 0,
    node_weights: Tensor | None = None,
    blank: int = 0,
    topology: str = "regular",
    reduction: str = "batch",
    backend: str | None = None,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The transducer loss and one KD loss, from one pass over the student's lattice.

    Without ``path`` the KD is that of all nodes (of the band ``ranges``), by default
    over {next label, blank, rest} (Panchapagesan 2020); with it that of the
    path's nodes, by default over all classes (X. Yang 2022).

    Args:
        student: (B, T, U+1, V) logits, dense or factored.
        teacher: same, its T may differ; or its stored targets. Never gets a gradient.
        labels: (B, U) ids, anything in the padding.
        logit_lengths: (B,) encoder frames of the student.
        label_lengths: (B,) labels.
        path: (B, N, 2) int64 (t, u) in the teacher's frames, as `best_path` gives it.
        path_lengths: (B,) nodes; default T_b + U_b, in the modified topology T_b.
        ranges: (B, T, S), the band of the transducer loss and of a KD without a path.
        classes: "full", "topk", "collapsed", or a `ClassSet`.
        divergence: "kl", "reverse_kl", "jsd", or a `Divergence`.
        temperature: divides the logits of both sides; KD is multiplied by its square.
        k: classes that "topk" keeps, blank among them.
        tail: what "topk" does with the others: "bucket" makes them one class,
            "renormalize" divides the k by their sum.
        shift: frames by which the student is later: it is read at (t + shift, u), and
            nodes past its frames are left out.
        node_weights: (B, T, U+1) factors of the divergence at the teacher's nodes, for
            example ``occupancy(...).sum(-1)``.
        blank: class of blank.
        topology: of the transducer loss, "regular" or "modified".
        reduction: of KD, "batch" sum over nodes / B, "node" mean over nodes, "none"
            (B,) sums; of the transducer loss the mean over B, or (B,) for "none".
        backend: of the transducer loss, "k2", "torch" or None.
        tolerance: the backward pass leaves out nodes whose largest gradient is below
            this fraction of the largest of those read together; 0 is exact.

    Returns:
        transducer loss, KD loss.

    Raises:
        ValueError: shapes, lengths, labels or options do not fit.
        ImportError: "k2" is forced and cannot be imported.
    """
    check_teacher_shape(student, teacher, same_frames=False)
    layout = make_layout(student, labels, logit_lengths, label_lengths, blank)
    layout = layout.within(ranges)
    if path is None:
        nodes = later(layout.nodes, shift, layout.nodes.shape[1]) & layout.nodes
    else:
        if path_lengths is None:
            path_lengths = layout.frames + layout.symbols * (topology == "regular")
        nodes = path_nodes(path, path_lengths, layout, shift)
        if isinstance(teacher, StoredPath):
            teacher = PathTeacher(teacher, path, path_lengths, nodes.device)
    check_frames(teacher, nodes, shift)
    if classes is None:
        classes = "collapsed" if path is None else "full"
    term = LatticeTerm(
        as_teacher(teacher),
        nodes,
        class_set(classes, k=k, tail=tail),
        divergence,
        temperature,
        later(node_weights, shift, nodes.shape[1]),
        shift,
    )
    transducer, (sums,) = lattice_losses(
        student,
        layout,
        [term],
        blank=blank,
        topology=topology,
        backend=backend,
        tolerance=tolerance,
    )
    kd = reduce_sums(sums, nodes, reduction)
    return transducer if reduction == "none" else transducer.mean(), kd


def full_lattice_kd(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    temperature: float = 1.0,
    divergence: str | Divergence = "kl",
    reduction: str = "batch",
) -> Tensor:
    """Divergence over all classes at all nodes, t < T_b and u <= U_b; with "kl"

        sum_{t,u} sum_k q(k|t,u) log [q(k|t,u) / p(k|t,u)]

    Args:
        student: (B, T, U+1, V) logits, dense or factored.
        teacher: same shape; detached.
        labels: (B, U) ids, anything in the padding.
        logit_lengths: (B,) encoder frames.
        label_lengths: (B,) labels.
        blank: class of blank.
        temperature: divides both logits; the loss is multiplied by its square.
        divergence: "kl", "reverse_kl", "jsd", or a `Divergence`.
        reduction: "batch" sum over nodes / B, "node" mean over valid nodes, "none" (B,)
            sums over nodes.

    Raises:
        ValueError: shapes, lengths or labels do not fit, an unknown reduction.
    """
    lattice = (labels, logit_lengths, label_lengths, blank)
    options = (divergence, temperature)
    return _all_nodes_kd(Full(), student, teacher, lattice, options, reduction)


def collapsed_lattice_kd(
    student: Logits,
    teacher: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    temperature: float = 1.0,
    divergence: str | Divergence = "kl",
    reduction: str = "batch",
) -> Tensor:
    """Divergence over {next label, blank, rest} at all nodes (Panchapagesan 2020).

    The row u = U_b has {blank, rest}. With "kl"

        sum_{t,u} sum_l q(l|t,u) log [q(l|t,u) / p(l|t,u)]

    with q(rest) = 1 - q(label) - q(blank), summed in log space.

    Arguments, reductions and errors as `full_lattice_kd`.
    """
    lattice = (labels, logit_lengths, label_lengths, blank)
    options = (divergence, temperature)
    return _all_nodes_kd(Collapsed(), student, teacher, lattice, options, reduction)


def _all_nodes_kd(
    classes: ClassSet,
    student: Logits,
    teacher: Logits,
    lattice: tuple,
    options: tuple,
    reduction: str,
) -> Tensor:
    check_teacher_shape(student, teacher, same_frames=True)
    layout = make_layout(student, *lattice)
    term = LatticeTerm(as_teacher(teacher), layout.nodes, classes, *options)
    _, (sums,) = lattice_losses(
        student, layout, [term], blank=lattice[-1], with_transducer=False
    )
    return reduce_sums(sums, layout.nodes, reduction)


def path_kd(
    student: Logits,
    teacher: Logits,
    path: Tensor,
    path_lengths: Tensor,
    *,
    shift: int = 0,
    student_lengths: Tensor | None = None,
    temperature: float = 1.0,
    divergence: str | Divergence = "kl",
    reduction: str = "batch",
) -> Tensor:
    """Divergence over all classes at the nodes of a path (X. Yang 2022).

    The student is read ``shift`` frames later. With "kl"

        sum_{(t,u) in path} sum_k q(k|t,u) log [q(k|t,u) / p(k|t+shift,u)]

    A node with t + shift outside the student's frames is dropped, from the value and
    from the count of nodes.

    Args:
        student: (B, T_student, U+1, V) logits, dense or factored.
        teacher: (B, T_teacher, U+1, V) logits, of the same frame rate; detached.
        path: (B, N, 2) int64 (t, u) in the teacher's frames, as `best_path` gives it.
        path_lengths: (B,) nodes.
        shift: in encoder frames; > 0 lets a streaming student emit later.
        student_lengths: (B,) encoder frames of the student. Default: T_student for all.
        temperature: divides both logits; the loss is multiplied by its square.
        divergence: "kl", "reverse_kl", "jsd", or a `Divergence`.
        reduction: "batch" sum over nodes / B, "node" mean over valid nodes, "none" (B,)
            sums over nodes.

    Raises:
        ValueError: shapes or lengths do not fit, a node outside the teacher's lattice,
            an unknown reduction.
    """
    check_teacher_shape(student, teacher, same_frames=False)
    batch, frames, rows, _ = student.shape
    if student_lengths is None:
        student_lengths = path_lengths.new_full((batch,), frames)
    check_lengths("student_lengths", student_lengths, batch, frames)
    # All classes are compared, so that it does not matter which of them is the label.
    no_labels = path_lengths.new_zeros(batch, rows - 1)
    label_lengths = path_lengths.new_full((batch,), rows - 1)
    layout = make_layout(student, no_labels, student_lengths, label_lengths)
    nodes = path_nodes(path, path_lengths, layout, shift)
    check_frames(teacher, nodes, shift)
    term = LatticeTerm(
        as_teacher(teacher), nodes, Full(), divergence, temperature, shift=shift
    )
    _, (sums,) = lattice_losses(student, layout, [term], with_transducer=False)
    return reduce_sums(sums, nodes, reduction)
