"""The transducer loss and any KD losses of a lattice, from one pass over it.

A loss of a lattice is a choice of its nodes, of the classes at which they are compared,
of a divergence, and of a teacher (`LatticeTerm`). Each node that the transducer loss or
a term needs is read once in the forward and once in the backward pass, however many
terms compare it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from espnet_kd.lattice import reading
from espnet_kd.lattice.kept_classes import class_log_probs
from espnet_kd.lattice.lattices import Lattices
from espnet_kd.lattice.logits import FactoredLogits, Logits, precision_of, tensors_of
from espnet_kd.lattice.nodes import Layout, Nodes
from espnet_kd.losses.classes import (
    AllClasses,
    ClassSet,
    KeptClasses,
    Question,
    check_fit,
    class_set,
)
from espnet_kd.losses.divergences import Divergence, divergence_of
from espnet_kd.losses.teachers import Teacher


@dataclass(frozen=True)
class LatticeTerm:
    """One KD loss on nodes of the student's lattice.

    Attributes:
        teacher: answers about the nodes.
        nodes: (B, T, U+1) bool, nodes of the student that are compared.
        classes: `Full()`, `TopK(k, tail)`, `Collapsed()`, or a name.
        divergence: "kl", "reverse_kl", "jsd", or a `Divergence`.
        temperature: divides the logits of both sides; the divergence is multiplied by
            its square.
        weights: (B, T, U+1) factor of each node's divergence; None: 1.
        shift: frames by which the student is later: its node (t, u) is compared with
            the teacher's (t - shift, u).

    Raises:
        ValueError: an unknown name, a temperature that is not positive, or a divergence
            that is infinite for these classes.
    """

    teacher: Teacher
    nodes: Tensor
    classes: str | ClassSet = "full"
    divergence: str | Divergence = "kl"
    temperature: float = 1.0
    weights: Tensor | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_set(self.classes))
        object.__setattr__(self, "divergence", divergence_of(self.divergence))
        if not self.temperature > 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")
        check_fit(self.classes, self.divergence)


def lattice_losses(
    student: Logits,
    layout: Layout,
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
        layout: of the student's lattices; the transducer loss is that of its nodes, a
            band where it was restricted to one.
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
    zeros = layout.nodes.new_zeros(
        layout.nodes.shape, dtype=precision_of(*tensors_of(student))
    )
    sums = [zeros[:, 0, 0]] * len(terms)
    arcs = []
    masks = [term.nodes for term in terms] + [layout.nodes] * with_transducer
    for nodes, chosen in _read_together(masks):
        with_arcs = len(terms) in chosen
        chosen = [i for i in chosen if i < len(terms)]
        log_probs, values = _compare(
            student, layout, nodes, [terms[i] for i in chosen], blank, with_arcs,
            tolerance,
        )  # fmt: skip
        if with_arcs:
            arcs.append((nodes, log_probs))
        for i, each in zip(chosen, values):
            each = _weighted(each, terms[i].weights, nodes).to(zeros.dtype)
            sums[i] = sums[i] + zeros.index_put(tuple(nodes), each).flatten(1).sum(1)
    if not with_transducer:
        return None, sums
    nodes = Nodes(*(torch.cat(x) for x in zip(*(nodes for nodes, _ in arcs))))
    log_probs = torch.cat([x for _, x in arcs])
    lattices = Lattices.from_nodes(layout, nodes, log_probs, topology, backend)
    return -lattices.total_score(), sums


def windowed_losses(
    student: Logits,
    layout: Layout,
    term: LatticeTerm,
    window: int,
    *,
    blank: int = 0,
    tolerance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sum over nodes of the least divergence within a window of shifts, and their
    number.

        sum_n min_{shift - window < d <= shift} D(q(t_n, u_n) || p(t_n + d, u_n))

    X. Yang's variant for streaming students, with the minimum taken per node.

    Args:
        term: its nodes and weights are those of the teacher, (B, T, U+1).
        window: number of shifts, the largest being ``term.shift``.
        others: as `lattice_losses`.

    Returns:
        (B,) and (); a node that every shift moves outside the student's frames is left
        out.
    """
    nodes = Nodes.where(term.nodes)
    least = []
    for shift in range(term.shift - window + 1, term.shift + 1):
        frames = layout.frames[nodes.utterance]
        frame = nodes.frame + shift
        inside = ((frame >= 0) & (frame < frames)).nonzero().squeeze(1)
        late, moved = nodes.take(inside).later(shift), replace(term, shift=shift)
        _, (value,) = _compare(student, layout, late, [moved], blank, False, tolerance)
        unread = value.new_full((nodes.total,), torch.inf)
        least.append(unread.index_put((inside,), value))
    least = torch.stack(least).min(0).values
    found = (least != torch.inf).nonzero().squeeze(1)
    least, nodes = least[found], nodes.take(found)
    least = _weighted(least, term.weights, nodes)
    values = torch.zeros_like(layout.nodes, dtype=least.dtype)
    values = values.index_put(tuple(nodes), least)
    return values.flatten(1).sum(1), found.new_tensor(len(found))


def _weighted(values: Tensor, weights: Tensor | None, nodes: Nodes) -> Tensor:
    """Values (N,) of nodes times their weights (B, T, U+1)."""
    if weights is None:
        return values
    return values * weights.to(values.device)[tuple(nodes)].to(values.dtype)


def _read_together(masks: Sequence[Tensor]) -> Iterator[tuple[Nodes, list[int]]]:
    """Nodes that the same set of losses needs, and that set.

    Nodes needed by the same set are read together. A loss without nodes still gets an
    empty read, so that it stays in the graph.

    Args:
        masks: (B, T, U+1) bool, the nodes of each loss.
    """
    if not masks:
        return
    signature = sum(mask.long() << i for i, mask in enumerate(masks))
    values = [value for value in signature.unique().tolist() if value]
    missing = [i for i in range(len(masks)) if not any(v >> i & 1 for v in values)]
    for value in values + [1 << i for i in missing]:
        chosen = [i for i in range(len(masks)) if value >> i & 1]
        yield Nodes.where(signature == value), chosen


def _compare(
    student: Logits,
    layout: Layout,
    nodes: Nodes,
    terms: Sequence[LatticeTerm],
    blank: int,
    with_arcs: bool,
    tolerance: float,
) -> tuple[Tensor | None, list[Tensor]]:
    """Read nodes of the student once, and compare them as each term requires.

    Returns:
        (N, 3) log-probabilities of {label, blank, rest}, or None; the value (N,) of
        each term.
    """
    arcs, emits = layout.arc_classes(nodes, blank), layout.emits[tuple(nodes)]
    answers = [
        term.classes.ask(
            term.teacher,
            Question(
                nodes.later(-term.shift),
                arcs,
                emits,
                blank,
                student.shape[-1],
                term.temperature,
            ),
        )
        for term in terms
    ]
    kept = _Kept()
    if with_arcs:
        kept.add(arcs, 1.0)
    targets = []
    for term, answer in zip(terms, answers):
        if isinstance(answer, KeptClasses):
            kept.add(answer.ids, term.temperature)
        else:
            targets.append(_target(term, answer))
    kept.read(student, nodes, targets, tolerance)
    divergences, values = iter(kept.found.divergence.unbind(1)), []
    for term, answer in zip(terms, answers):
        if isinstance(answer, KeptClasses):
            log_p = kept.log_probs(answer.ids, term.temperature)
            value = term.divergence(*answer.pair(log_p))
        else:
            value = next(divergences)
        values.append(value * term.temperature**2)
    return kept.log_probs(arcs, 1.0) if with_arcs else None, values


def _target(term: LatticeTerm, answer: AllClasses) -> reading.Target:
    def log_probs(nodes: Nodes) -> Tensor:
        return answer.log_probs(nodes.later(-term.shift))

    return reading.Target(log_probs, term.temperature, term.divergence)


class _Kept:
    """Classes that several losses keep of the same nodes, read side by side."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.temperatures: set[float] = set()

    def add(self, ids: Tensor, temperature: float) -> None:
        """Ask for classes (N, K); the same tensor is read once."""
        if not any(ids is x for x in self.ids):
            self.ids.append(ids)
        self.temperatures.add(temperature)

    def read(self, student, nodes, targets, tolerance: float) -> None:
        self.order = sorted(self.temperatures)
        self.all_ids = torch.cat(self.ids, dim=1) if self.ids else None
        self.found = reading.read_nodes(
            student, nodes, self.all_ids, self.order, targets, tolerance
        )

    def log_probs(self, ids: Tensor, temperature: float) -> Tensor:
        """(N, K+1) of requested classes, the rest last."""
        before = 0
        for each in self.ids:
            if each is ids:
                break
            before += each.shape[1]
        columns = slice(before, before + ids.shape[1])
        rest = self.found.rest[:, self.order.index(temperature)]
        return class_log_probs(
            self.found.scores, rest, self.all_ids, columns, temperature
        )
