"""The transducer loss and any KD losses of a lattice, from one pass over it.

A loss of a lattice is a choice of its nodes, of the classes at which they are compared,
and of a teacher (`LatticeTerm`). Each node that the transducer loss or a term needs is
read once in the forward and once in the backward pass, whatever is asked of it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espnet_kd.lattice.algebra import arc_ids, make_arcs, restrict
from espnet_kd.lattice.classes import class_log_probs
from espnet_kd.lattice.factored import (
    FactoredLogits,
    Logits,
    Nodes,
    nodes_of,
    precision_of,
    tensors_of,
)
from espnet_kd.lattice.nodes import LOG_ZERO, Grid, make_grid
from espnet_kd.lattice.reading import Target, read_nodes
from espnet_kd.losses.classes import TAILS, kl, topk_divergence
from espnet_kd.losses.nodes import check_path, path_mask, reduce_sums
from espnet_kd.losses.teachers import (
    OnlineTeacher,
    PathTeacher,
    StoredLattice,
    StoredPath,
    Teacher,
)

CLASSES = ("full", "topk", "collapsed")


@dataclass(frozen=True)
class LatticeTerm:
    """One KD loss on nodes of the student's lattice.

    Attributes:
        teacher: says what the nodes should be.
        nodes: (B, T, U+1) bool, nodes of the student that are compared.
        classes: "full", "topk", or "collapsed": {next label, blank, all others}.
        temperature: divides the logits of both sides; the KL is multiplied by its
            square.
        weights: (B, T, U+1) factor of each node's KL; None: 1.
        shift: frames by which the student is later: its node (t, u) is compared with
            the teacher's (t - shift, u).
        k: classes that "topk" keeps, blank among them.
        tail: what "topk" does with the others, "bucket" or "renormalize".
    """

    teacher: Teacher
    nodes: Tensor
    classes: str = "full"
    temperature: float = 1.0
    weights: Tensor | None = None
    shift: int = 0
    k: int = 8
    tail: str = "bucket"

    def __post_init__(self) -> None:
        for name, allowed in (("classes", CLASSES), ("tail", TAILS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not one of {allowed}"
                )
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")


def lattice_losses(
    student: Logits,
    grid: Grid,
    terms: Sequence[LatticeTerm],
    *,
    blank: int = 0,
    with_transducer: bool = True,
    topology: str = "regular",
    backend: str | None = None,
    tolerance: float = 0.0,
) -> tuple[Tensor | None, list[Tensor]]:
    """The transducer loss of each utterance, and the sum over nodes of each term.

    Args:
        student: (B, T, U+1, V) logits, dense or factored.
        grid: the student's lattices; the transducer loss is that of its nodes, a band
            where it was restricted to one.
        terms: KD losses.
        blank: class of blank.
        with_transducer: False leaves the transducer loss out.
        topology: of the transducer loss, "regular" or "modified".
        backend: of the transducer loss, "k2", "torch" or None.
        tolerance: the backward pass leaves out nodes whose largest gradient is below
            this fraction of the largest of those read together; 0 is exact.

    Returns:
        (B,) -log P(labels), or None; a (B,) tensor for each term.
    """
    if isinstance(student, FactoredLogits):
        student = student.upcast()  # so that gradients are rounded once, at the end
    used = [term.nodes.long() << i for i, term in enumerate(terms)]
    if with_transducer:
        used.append(grid.nodes.long() << len(terms))
    if not used:
        return None, []
    signature = sum(used)
    dtype = precision_of(*tensors_of(student))
    zeros = torch.zeros_like(grid.nodes, dtype=dtype)
    sums = [zeros[:, 0, 0]] * len(terms)
    arcs = []
    # Nodes of which the same is asked are read together. What is asked of no node is
    # read of none, so that each loss has a gradient.
    asked = [value for value in signature.unique().tolist() if value]
    asked += [1 << i for i in range(len(used)) if not any(v >> i & 1 for v in asked)]
    for value in asked:
        nodes = nodes_of(signature == value)
        chosen = [i for i in range(len(terms)) if value >> i & 1]
        emits = grid.emits[tuple(nodes)]
        log_probs, values = _compare(
            student,
            nodes,
            arc_ids(grid, nodes, blank),
            emits,
            [terms[i] for i in chosen],
            blank,
            with_arcs=bool(value >> len(terms)),
            tolerance=tolerance,
        )
        if log_probs is not None:
            arcs.append((nodes, log_probs))
        for i, each in zip(chosen, values):
            if terms[i].weights is not None:
                weights = terms[i].weights.to(each.device)
                each = each * weights[tuple(nodes)].to(each.dtype)
            sums[i] = sums[i] + zeros.index_put(tuple(nodes), each).flatten(1).sum(1)
    if not with_transducer:
        return None, sums
    nodes = Nodes(*(torch.cat(x) for x in zip(*(nodes for nodes, _ in arcs))))
    log_probs = torch.cat([x for _, x in arcs])
    return -make_arcs(grid, nodes, log_probs, topology, backend).total(), sums


def _compare(
    student: Logits,
    nodes: Nodes,
    ids: Tensor,
    emits: Tensor,
    terms: Sequence[LatticeTerm],
    blank: int,
    with_arcs: bool,
    tolerance: float,
) -> tuple[Tensor | None, list[Tensor]]:
    """Read nodes of the student once, and compare them in every way that is asked.

    Args:
        ids: (N, 2) label and blank of each node.
        emits: (N,) bool, a label leaves the node.

    Returns:
        (N, 3) log-probabilities of {label, blank, all others}, or None; the KL (N,) of
        each term.
    """
    temperatures = {t.temperature for t in terms if t.classes != "full"}
    temperatures = sorted(temperatures | ({1.0} if with_arcs else set()))
    targets = [_target(term) for term in terms if term.classes == "full"]
    all_ids, found, columns = [ids], {}, {}
    for i, term in enumerate(terms):
        if term.classes == "topk":
            start = sum(x.shape[1] for x in all_ids)
            found[i], kept = term.teacher.topk(
                nodes.later(-term.shift), term.k, blank, term.temperature
            )
            all_ids.append(kept)
            columns[i] = slice(start, start + kept.shape[1])
    all_ids = torch.cat(all_ids, dim=1)
    read = read_nodes(student, nodes, all_ids, temperatures, targets, tolerance)

    def log_probs(columns: slice, temperature: float) -> Tensor:
        rest = read.rest[:, temperatures.index(temperature)]
        return class_log_probs(read.scores, rest, all_ids, columns, temperature)

    divergences, values = iter(read.divergence.unbind(1)), []
    for i, term in enumerate(terms):
        if term.classes == "full":
            value = next(divergences)
        elif term.classes == "topk":
            log_p = log_probs(columns[i], term.temperature)
            value = topk_divergence(found[i], log_p, term.tail, student.shape[-1])
        else:
            teacher_nodes = nodes.later(-term.shift)
            log_q = term.teacher.collapsed(teacher_nodes, ids, term.temperature)
            # of two classes none is left beside a label and blank
            no_others = emits if student.shape[-1] == 2 else torch.zeros_like(emits)
            absent = torch.stack([~emits, torch.zeros_like(emits), no_others], dim=1)
            value = kl(
                log_q.masked_fill(absent, LOG_ZERO),
                log_probs(slice(0, 2), term.temperature).masked_fill(absent, LOG_ZERO),
            )
        values.append(value * term.temperature**2)
    return log_probs(slice(0, 2), 1.0) if with_arcs else None, values


def _target(term: LatticeTerm) -> Target:
    def log_probs(nodes: Nodes) -> Tensor:
        return term.teacher.log_probs(nodes.later(-term.shift), term.temperature)

    return Target(log_probs, term.temperature)


def windowed_losses(
    student: Logits,
    grid: Grid,
    term: LatticeTerm,
    window: int,
    *,
    blank: int = 0,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sum over nodes of the least KL within a window of shifts, and their number.

        sum_n min_{shift - window < d <= shift} KL(q(t_n, u_n) || p(t_n + d, u_n))

    X. Yang's variant for streaming students, with the minimum taken per node.

    Args:
        term: its nodes and weights are those of the teacher, (B, T, U+1).
        window: number of shifts, the largest being ``term.shift``.
        others: as `lattice_losses`.

    Returns:
        (B,) and (); a node that no shift leaves inside of the student's frames is left
        out.
    """
    nodes = nodes_of(term.nodes)
    least = []
    for shift in range(term.shift - window + 1, term.shift + 1):
        frames = grid.frames[nodes.utterance]
        frame = nodes.frame + shift
        inside = ((frame >= 0) & (frame < frames)).nonzero().squeeze(1)
        late = nodes.take(inside).later(shift)
        _, (value,) = _compare(
            student,
            late,
            arc_ids(grid, late, blank),
            grid.emits[tuple(late)],
            [replace(term, shift=shift)],
            blank,
            with_arcs=False,
            tolerance=tolerance,
        )
        unread = value.new_full((nodes.total,), torch.inf)
        least.append(unread.index_put((inside,), value))
    least = torch.stack(least).min(0).values
    found = (least != torch.inf).nonzero().squeeze(1)
    least, nodes = least[found], nodes.take(found)
    if term.weights is not None:
        least = least * term.weights[tuple(nodes)].to(least.dtype)
    values = torch.zeros_like(grid.nodes, dtype=least.dtype)
    values = values.index_put(tuple(nodes), least)
    return values.flatten(1).sum(1), found.new_tensor(len(found))


def path_nodes(
    path: Tensor, path_lengths: Tensor, grid: Grid, shift: int = 0
) -> Tensor:
    """Nodes (B, T, U+1) bool at which the student is read for a path.

    Args:
        path: (B, N, 2) int64 (t, u).
        path_lengths: (B,) nodes.
        grid: the student's lattices.
        shift: in encoder frames.

    Raises:
        ValueError: shapes or lengths do not fit, a node has a row outside the lattice.
    """
    batch, frames, rows = grid.nodes.shape
    check_path(path, batch)
    valid = path_mask(path, path_lengths, shift=shift, student_lengths=grid.frames)
    path = path.to(grid.nodes.device).long()
    utterance, step = valid.nonzero(as_tuple=True)
    frame, row = path[utterance, step].unbind(-1)
    if ((row < 0) | (row >= rows) | (frame < 0)).any():
        raise ValueError(
            f"path: has nodes outside a lattice of {frames} frames and {rows} rows: "
            "was it made from other audio or another token list?"
        )
    nodes = torch.zeros_like(grid.nodes)
    nodes[utterance, frame + shift, row] = True
    return nodes


def later(x: Tensor | None, shift: int, frames: int) -> Tensor | None:
    """Values at (t, u) moved to (t + shift, u), zero where nothing is moved to.

    (B, T', U+1) -> (B, frames, U+1).
    """
    if x is None or (shift == 0 and x.shape[1] == frames):
        return x
    moved = x.new_zeros(len(x), frames, x.shape[2])
    start, end = max(0, shift), min(frames, x.shape[1] + shift)
    if start < end:
        moved[:, start:end] = x[:, start - shift : end - shift]
    return moved


def as_teacher(teacher: Logits | Teacher) -> Teacher:
    """A lattice as a teacher that computes; any other teacher as it is."""
    if isinstance(teacher, (Tensor, FactoredLogits)):
        return OnlineTeacher([teacher])
    return teacher


def _frames_of(teacher: object) -> tuple[int, ...] | None:
    """(B, T, U+1) or (B, T, U+1, V) of a teacher's lattice, None where it has none."""
    if isinstance(teacher, (Tensor, FactoredLogits)):
        return tuple(teacher.shape)
    return tuple(teacher.blank.shape) if isinstance(teacher, StoredLattice) else None


def check_teacher_shape(student: Logits, teacher: object, same_frames: bool) -> None:
    """ValueError where a teacher's lattice does not fit the student's."""
    given = _frames_of(teacher)
    if given is None:
        return
    wanted = tuple(student.shape[: max(3, len(given))])
    is_equal = given == wanted
    if not same_frames:
        is_equal = given[:1] + given[2:] == wanted[:1] + wanted[2:]
    if not is_equal:
        raise ValueError(
            f"teacher: shape {given} differs from the shape {tuple(student.shape)} of "
            "student" + ("" if same_frames else " in more than the number of frames")
        )


def check_frames(teacher: object, nodes: Tensor, shift: int) -> None:
    """ValueError where a teacher lacks frames that it is asked about.

    Args:
        nodes: (B, T, U+1) bool, of the student; the teacher's are ``shift`` earlier.
    """
    given = _frames_of(teacher)
    if given is None or given[1] >= nodes.shape[1] - shift:
        return
    frame = nodes.any(2).any(0).nonzero()
    if len(frame) and int(frame.max()) - shift >= given[1]:
        raise ValueError(
            f"teacher: has {given[1]} frames, but frame {int(frame.max()) - shift} is "
            "compared; cut logit_lengths, or the path, to the frames of both"
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
    classes: str | None = None,
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
    over {next label, blank, all others} (Panchapagesan 2020); with it that of the
    path's nodes, by default over all classes (X. Yang 2022).

    Args:
        student: (B, T, U+1, V) logits, dense or factored.
        teacher: same, its T may differ; or what was stored of it. Never gets a
            gradient.
        labels: (B, U) ids, anything in the padding.
        logit_lengths: (B,) encoder frames of the student.
        label_lengths: (B,) labels.
        path: (B, N, 2) int64 (t, u) in the teacher's frames, as `best_path` gives it.
        path_lengths: (B,) nodes; default T_b + U_b, in the modified topology T_b.
        ranges: (B, T, S), the band of the transducer loss and of a KD without a path.
        classes: "full", "topk" or "collapsed".
        temperature: divides the logits of both sides; KD is multiplied by its square.
        k: classes that "topk" keeps, blank among them.
        tail: what "topk" does with the others: "bucket" makes them one class,
            "renormalize" divides the k by their sum.
        shift: frames by which the student is later: it is read at (t + shift, u), and
            nodes past its frames are left out.
        node_weights: (B, T, U+1) factors of the KL at the teacher's nodes, say
            ``occupancy(...).sum(-1)``.
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
    grid = make_grid(student, labels, logit_lengths, label_lengths, blank)
    grid = restrict(grid, ranges)
    if path is None:
        nodes = later(grid.nodes, shift, grid.nodes.shape[1]) & grid.nodes
    else:
        if path_lengths is None:
            path_lengths = grid.frames + grid.symbols * (topology == "regular")
        nodes = path_nodes(path, path_lengths, grid, shift)
        if isinstance(teacher, StoredPath):
            teacher = PathTeacher(teacher, path, path_lengths, nodes.device)
    check_frames(teacher, nodes, shift)
    term = LatticeTerm(
        as_teacher(teacher),
        nodes,
        classes or ("collapsed" if path is None else "full"),
        temperature,
        later(node_weights, shift, nodes.shape[1]),
        shift,
        k,
        tail,
    )
    transducer, (sums,) = lattice_losses(
        student,
        grid,
        [term],
        blank=blank,
        topology=topology,
        backend=backend,
        tolerance=tolerance,
    )
    kd = reduce_sums(sums, nodes, reduction)
    return transducer if reduction == "none" else transducer.mean(), kd
