"""Inputs of the benchmarks: two joint networks, labels, and a teacher's stored targets.

Shapes: B utterances, T frames, U labels, V classes, J joint width, N path nodes.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from espnet_kd.lattice import best_path, occupancy, prune_ranges
from espnet_kd.losses import FactoredLogits, StoredLattice, StoredPath, topk_targets

LOG_ZERO = -1e30
BAND = 5  # rows of a pruned band
TOP_K = 8
VARIANTS = ("plain", "ragged", "peaky")


class Shape(NamedTuple):
    batch: int
    frames: int
    labels: int
    classes: int

    def __str__(self) -> str:
        return "B={} T={} U={} V={}".format(*self)


@dataclass
class Problem:
    """One batch. Class 0 is blank; padded labels are 0, as k2 requires."""

    student: FactoredLogits
    teacher: FactoredLogits
    labels: Tensor  # (B, U)
    frames: Tensor  # (B,)
    label_lengths: Tensor  # (B,)
    simple: tuple = ()  # two (V, J): k2's simple projections of encoder and decoder
    path: Tensor | None = None  # (B, N, 2), the teacher's best
    path_lengths: Tensor | None = None  # (B,)
    ranges: Tensor | None = None  # (B, T, S), where the student's posterior is
    node_weights: Tensor | None = None  # (B, T, U+1), the teacher's posterior
    stored_lattice: StoredLattice | None = None
    stored_path: StoredPath | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What receives a gradient."""
        return (*self.student.tensors, *self.simple)

    @property
    def lattice(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.labels, self.frames, self.label_lengths

    @property
    def nodes(self) -> Tensor:
        """(B, T, U+1) bool: not padding."""
        t = torch.arange(self.student.shape[1], device=self.labels.device)
        t, u = t.view(-1, 1), self.rows
        frames, rows = (x.view(-1, 1, 1) for x in (self.frames, self.label_lengths))
        return (t < frames) & (u <= rows)

    @property
    def rows(self) -> Tensor:
        return torch.arange(self.labels.shape[1] + 1, device=self.labels.device)

    @property
    def next_labels(self) -> Tensor:
        """(B, U+1); blank in the rows that no label leaves."""
        labels = functional.pad(self.labels, (0, 1))
        return labels.masked_fill(self.rows >= self.label_lengths.view(-1, 1), 0)


def collapse(logits: Tensor, next_labels: Tensor, in_place: bool = False) -> Tensor:
    """Log-probabilities (..., 3) of {blank, next label, rest} from (..., V) logits.

    The rest is summed: 1 - the others would lose it to rounding in a peaky model. A row
    that no label leaves (next label = blank) has {blank, rest} alone.
    """
    label = next_labels.expand(logits.shape[:-1]).unsqueeze(-1)
    ids = torch.cat([torch.zeros_like(label), label], dim=-1)
    # not gather(): it saves the logits for backward, which may be overwritten
    nodes = torch.meshgrid(
        *(torch.arange(n, device=ids.device) for n in ids.shape), indexing="ij"
    )
    kept = logits[(*nodes[:-1], ids)]
    others = (logits.scatter_ if in_place else logits.scatter)(-1, ids, -torch.inf)
    classes = torch.cat([kept, others.logsumexp(-1, keepdim=True)], dim=-1)
    is_label = torch.tensor([False, True, False], device=logits.device)
    absent = (label == 0) & is_label
    return classes.masked_fill(absent, LOG_ZERO).log_softmax(-1)


def frame_chunks(logits: FactoredLogits) -> list[slice]:
    """Frames in runs of about 1024 nodes per batch, 16384 on a GPU."""
    batch, frames, rows, _ = logits.shape
    nodes = 2**10 if logits.device.type == "cpu" else 2**14
    step = max(1, nodes // (batch * rows))
    return [slice(t, t + step) for t in range(0, frames, step)]


@torch.no_grad()
def collapse_in_chunks(logits: FactoredLogits, problem: Problem) -> Tensor:
    """(B, T, U+1, 3) as `collapse` returns it, without the dense logits."""
    next_labels = problem.next_labels.unsqueeze(1)
    chunks = [
        replace(logits, encoder=logits.encoder[:, part]).dense()
        for part in frame_chunks(logits)
    ]
    return torch.cat([collapse(x, next_labels, in_place=True) for x in chunks], dim=1)


def _random_joint(shape: Shape, width: int, generator) -> FactoredLogits:
    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    batch, frames, labels, classes = shape
    return FactoredLogits(
        0.5 * normal(batch, frames, width),
        0.5 * normal(batch, labels + 1, width),
        normal(classes, width) / width**0.5,
        0.1 * normal(classes),
    )


def _random_emissions(problem: Problem, generator) -> Tensor:
    """(B, U) frames at which the labels are emitted, in order."""
    where = torch.rand(problem.labels.shape, generator=generator).sort(1).values
    return (where * problem.frames.unsqueeze(1)).long()


def _nodes_of(emissions: Tensor, problem: Problem) -> tuple[Tensor, ...]:
    """b, t, u and class of each arc of the alignment with these emissions."""
    has_label = problem.rows[:-1] < problem.label_lengths.unsqueeze(1)
    b, u = has_label.nonzero(as_tuple=True)
    steps = torch.arange(problem.student.shape[1])
    emitted = (emissions.unsqueeze(1) <= steps.view(-1, 1)) & has_label.unsqueeze(1)
    c, t = (steps < problem.frames.unsqueeze(1)).nonzero(as_tuple=True)
    return (
        torch.cat([b, c]),
        torch.cat([emissions[b, u], t]),
        torch.cat([u, emitted.sum(2)[c, t]]),
        torch.cat([problem.labels[b, u], torch.zeros_like(t)]),
    )


def _fit(logits: FactoredLogits, problem: Problem, emissions, generator, steps=20):
    """Fit a joint to alignments, so that its posterior is that of a trained model.

    Each step moves every label by up to two frames, and the model becomes as unsure of
    the frame. A step costs T + U nodes per utterance, not the lattice.
    """
    tensors = [x.clone().requires_grad_() for x in logits.tensors]
    optimizer = torch.optim.Adam(tensors, lr=0.02)
    encoder, decoder, weight, bias = tensors
    for _ in range(steps):
        moves = torch.randint(-2, 3, emissions.shape, generator=generator)
        last = problem.frames.unsqueeze(1) - 1
        moved = torch.minimum((emissions + moves).clamp(min=0), last).sort(1).values
        b, t, u, classes = _nodes_of(moved, problem)
        hidden = torch.tanh(encoder[b, t] + decoder[b, u])
        scores = functional.linear(hidden, weight, bias)
        optimizer.zero_grad()
        functional.cross_entropy(scores, classes).backward()
        optimizer.step()
    return FactoredLogits(*(x.detach() for x in tensors))


def _add_targets(problem: Problem) -> Problem:
    """The targets that a teacher would have stored, and the student's band."""
    teacher = collapse_in_chunks(problem.teacher, problem)
    student = collapse_in_chunks(problem.student, problem)
    arcs = (torch.ones_like(problem.labels), problem.frames, problem.label_lengths)
    path, path_lengths, _ = best_path(teacher, *arcs)
    b = torch.arange(len(path)).unsqueeze(1)
    t, u = path.unbind(-1)
    encoder, decoder, weight, bias = problem.teacher.tensors
    hidden = torch.tanh(encoder[b, t] + decoder[b, u])
    on_path = functional.linear(hidden, weight, bias).log_softmax(-1)
    return replace(
        problem,
        path=path,
        path_lengths=path_lengths,
        ranges=prune_ranges(occupancy(student, *arcs), *arcs[1:], BAND),
        node_weights=occupancy(teacher, *arcs).sum(-1),
        stored_lattice=StoredLattice(
            teacher[..., 0].contiguous(), teacher[..., 1].contiguous()
        ),
        stored_path=StoredPath(*topk_targets(on_path, TOP_K)),
    )


def make_problem(
    shape: Shape, variant: str, joint: int, teacher_joint: int, seed: int = 0
) -> Problem:
    """A batch on the CPU; the same numbers on every machine with the same torch.

    Args:
        shape: sizes of the padded batch.
        variant: "plain", "ragged" (lengths from 40 to 100 %), or "peaky" (both models
            fitted to alignments, so that few nodes have a posterior that matters).
        joint: width of the student's joint network.
        teacher_joint: width of the teacher's.
        seed: of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, frames, labels, classes = shape
    student = _random_joint(shape, joint, generator)
    teacher = _random_joint(shape, teacher_joint, generator)
    shortest = 0.4 if variant == "ragged" else 1.0
    shares = torch.linspace(shortest, 1, batch)
    lengths = (shares * labels).round().long()
    ids = torch.randint(1, classes, (batch, labels), generator=generator)
    ids = ids.masked_fill(torch.arange(labels) >= lengths.unsqueeze(1), 0)
    problem = Problem(student, teacher, ids, (shares * frames).round().long(), lengths)
    if variant == "peaky":
        emissions = _random_emissions(problem, generator)
        student = _fit(student, problem, emissions, generator)
        teacher = _fit(teacher, problem, emissions, generator)
    simple = [torch.randn(classes, joint, generator=generator) for _ in range(2)]
    problem = replace(
        problem,
        student=student,
        teacher=teacher,
        simple=tuple(x / joint**0.5 for x in simple),
    )
    problem = _add_targets(problem)
    for parameter in problem.parameters:
        parameter.requires_grad_()
    return problem
