"""Naive float64 references for the losses and the lattice algebra of espnet_kd.

Everything here is a plain loop over one node, one frame or one alignment, written from
the formulas of the papers and independent of the code under test: neither espnet_kd nor
torch is imported. Notation: z logits, T temperature, p = softmax(z / T) the student,
q the teacher. A lattice has T frames and U labels; an *exit* is a way to leave a node.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

BLANK, LABEL = 0, 1  # the two exits of a node, in the order of occupancy's last axis
Exit = tuple[int, int, int]  # (t, u, BLANK or LABEL)


# ---------------------------------------------------------------- distributions


def logsumexp(values: Sequence[float]) -> float:
    """log sum exp, with log 0 = -inf for the empty sum."""
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return -math.inf
    return top + math.log(sum(math.exp(value - top) for value in values))


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(z / T) of one vector of logits."""
    scaled = [float(value) / temperature for value in logits]
    norm = logsumexp(scaled)
    return np.array([value - norm for value in scaled])


def divergence_of_groups(name: str, log_q: float, log_p: float) -> float:
    """One group's term of a divergence between q and p; 0 log 0 = 0.

    kl: q log(q/p). reverse_kl: p log(p/q). jsd: [q log(q/m) + p log(p/m)] / 2 with
    m = (p + q) / 2.
    """

    def term(log_a: float, log_b: float) -> float:
        return 0.0 if log_a == -math.inf else math.exp(log_a) * (log_a - log_b)

    if name == "kl":
        return term(log_q, log_p)
    if name == "reverse_kl":
        return term(log_p, log_q)
    log_m = logsumexp([log_q, log_p]) - math.log(2)
    return (term(log_q, log_m) + term(log_p, log_m)) / 2


def divergence_slope(name: str, log_q: float, log_p: float) -> float:
    """d `divergence_of_groups` / d log p.

    kl: -q. reverse_kl: p (log(p/q) + 1). jsd: p log(p/m) / 2, since in its derivative
        by p, [log(p/m) + 1 - (q + p) / 2m] / 2, the last two cancel.
    """
    if name == "kl":
        return -math.exp(log_q)
    if log_p == -math.inf:
        return 0.0
    if name == "reverse_kl":
        return math.exp(log_p) * (log_p - log_q + 1)
    log_m = logsumexp([log_q, log_p]) - math.log(2)
    return math.exp(log_p) * (log_p - log_m) / 2


def grouped(logits, groups, log_q, temperature: float = 1.0, divergence="kl") -> float:
    """T^2 sum_g d(q_g, p_g), where p_g sums p over the classes of group g.

    With kl, T^2 sum_g q_g (log q_g - log p_g). Singletons give the plain divergence;
    {y}, {blank}, {others} give equation D.1 of Panchapagesan et al. 2020. The mass of a
    group is a sum of its own classes, never "1 - the others", so it is exact even if
    tiny.
    """
    log_p = group_masses(logits, groups, temperature)
    terms = (divergence_of_groups(divergence, *pair) for pair in zip(log_q, log_p))
    return temperature**2 * sum(terms)


def grouped_grad(
    logits, groups, log_q, temperature: float = 1.0, divergence="kl"
) -> np.ndarray:
    """Gradient of `grouped`: T sum_g s_g ([k in g] p_k / p_g - p_k), s_g its slope.

    With kl, groups that cover all the classes and T = 1 this is p_k (1 - q_c / p_c).
    """
    log_p = log_softmax(logits, temperature)
    grad = np.zeros(len(log_p))
    for group, log_mass in zip(groups, log_q):
        if not group:
            continue
        total = logsumexp(log_p[group])
        slope = divergence_slope(divergence, log_mass, total)
        grad -= slope * np.exp(log_p)
        grad[group] += slope * np.exp(log_p[group] - total)
    return temperature * grad


def group_masses(logits, groups, temperature: float = 1.0) -> list[float]:
    """log of the probability that softmax(z / T) gives to each group."""
    log_p = log_softmax(logits, temperature)
    return [logsumexp(log_p[group]) for group in groups]


# ------------------------------------------------------- nodes and their reduction


class Node(NamedTuple):
    """One compared node: where the student is read, its loss, d loss / d logits."""

    where: tuple[int, ...]  # (b, t, u) in a lattice, (b, frame) in a sequence
    value: float
    grad: np.ndarray  # (V,)


def reduced(nodes: list[Node], batch: int, reduction: str) -> float | np.ndarray:
    """batch: sum / B; node: mean over the nodes; none: (B,) sums (DESIGN section 4)."""
    sums = np.zeros(batch)
    for node in nodes:
        sums[node.where[0]] += node.value
    if reduction == "none":
        return sums
    return sums.sum() / {"batch": batch, "node": max(len(nodes), 1)}[reduction]


def reduced_grad(nodes, shape, reduction: str, upstream: np.ndarray | None = None):
    """Gradient of `reduced` for student logits of `shape`; zero away from the nodes.

    `upstream` (B,) weighs the utterances of reduction "none".
    """
    grad = np.zeros(shape)
    for node in nodes:
        weight = {
            "none": 1.0 if upstream is None else upstream[node.where[0]],
            "batch": 1.0 / shape[0],
            "node": 1.0 / len(nodes),
        }[reduction]
        grad[node.where] += weight * node.grad
    return grad


def central_difference(function: Callable, x: np.ndarray, step: float = 1e-5):
    """(f(x + h) - f(x - h)) / 2h for every element of x (float64)."""
    grad = np.zeros_like(x)
    for where in np.ndindex(*x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[where] += sign * step
            values.append(function(moved))
        grad[where] = (values[0] - values[1]) / (2 * step)
    return grad


# ------------------------------------------------------------------------- losses


def collapsed_groups(size: int, label: int | None, blank: int) -> list[list[int]]:
    """{y_{u+1}}, {blank}, {rest} (papers D.1); {blank}, {rest} in the row u = U."""
    named = [blank] if label is None else [label, blank]
    return [[c] for c in named] + [[c for c in range(size) if c not in named]]


def full_groups(size: int, label: int | None = None, blank: int = 0):
    """Every class for itself."""
    return [[c] for c in range(size)]


def lattice_kd(
    student,
    teacher,
    labels,
    logit_lengths,
    label_lengths,
    groups_of,
    blank,
    temperature,
    divergence="kl",
) -> list[Node]:
    """sum_{t,u} D(teacher || student) over all nodes t < T_b, u <= U_b (papers D.1).

    `groups_of` is `collapsed_groups` or `full_groups`.
    """
    nodes = []
    for b in range(student.shape[0]):
        for t in range(logit_lengths[b]):
            for u in range(label_lengths[b] + 1):
                label = int(labels[b, u]) if u < label_lengths[b] else None
                groups = groups_of(student.shape[-1], label, blank)
                log_q = group_masses(teacher[b, t, u], groups, temperature)
                args = (student[b, t, u], groups, log_q, temperature, divergence)
                nodes.append(Node((b, t, u), grouped(*args), grouped_grad(*args)))
    return nodes


def path_kd(
    student, teacher, path, path_lengths, shift, student_lengths, temperature,
    divergence="kl",
) -> list[Node]:  # fmt: skip
    """sum_{(t,u) in path} D(teacher(t, u) || student(t + shift, u)) (papers B.1).

    Nodes whose t + shift falls outside the student's frames are dropped.
    """
    nodes = []
    groups = full_groups(student.shape[-1])
    for b in range(student.shape[0]):
        frames = student.shape[1] if student_lengths is None else student_lengths[b]
        for t, u in path[b, : path_lengths[b]]:
            if 0 <= t + shift < frames:
                where = (b, int(t + shift), int(u))
                log_q = log_softmax(teacher[b, t, u], temperature)
                args = (student[where], groups, log_q, temperature, divergence)
                nodes.append(Node(where, grouped(*args), grouped_grad(*args)))
    return nodes


def essence_kd(
    student, log_probs, ids, lengths, tail, temperature, divergence="kl"
) -> list[Node]:
    """sum_l sum_{i in S} q_i (log q_i - log p_i), S the K kept classes (papers C.1).

    renormalize: q_i = pT_i / sum_S pT, the student's softmax stays over all classes.
    bucket: S and one more class that holds all the others on both sides (papers C.4).
    """
    nodes = []
    size = student.shape[-1]
    for b in range(student.shape[0]):
        for frame in range(lengths[b]):
            kept = [int(c) for c in ids[b, frame]]
            groups = [[c] for c in kept]
            log_q = [float(value) for value in log_probs[b, frame]]
            if tail == "renormalize":
                norm = logsumexp(log_q)
                log_q = [value - norm for value in log_q]
                groups.append([c for c in range(size) if c not in kept])
                log_q.append(-math.inf)
            elif len(kept) < size:
                groups.append([c for c in range(size) if c not in kept])
                rest = 1.0 - sum(math.exp(value) for value in log_q)
                log_q.append(math.log(rest) if rest > 0 else -math.inf)
            where = (b, frame)
            args = (student[where], groups, log_q, temperature, divergence)
            nodes.append(Node(where, grouped(*args), grouped_grad(*args)))
    return nodes


def ensemble_log_probs(logits, weights, temperature: float = 1.0) -> np.ndarray:
    """log sum_m w_m softmax(z_m / T), the linear average of posteriors (papers C.1)."""
    mean = np.zeros(logits[0].shape)
    for where in np.ndindex(*mean.shape[:-1]):
        for weight, member in zip(weights, logits):
            mean[where] += weight * np.exp(log_softmax(member[where], temperature))
    return np.log(mean)


def topk_classes(log_probs: np.ndarray, k: int, keep: Sequence[int]) -> list[int]:
    """The classes in `keep` and the best of the others, k in all, in rising order."""
    others = [c for c in range(len(log_probs)) if c not in keep]
    others.sort(key=lambda c: -log_probs[c])
    return sorted(list(keep) + others[: k - len(keep)])


def error_weight(wer: float, beta: float) -> float:
    """exp(-beta WER) (papers E.1, Kim et al. 2019)."""
    return math.exp(-beta * wer)


def posterior_weights(scores, scale: float, lengths) -> np.ndarray:
    """w_bk = exp(scale s_bk) / sum_j exp(scale s_bj), j < lengths[b]; 0 elsewhere.

    The n-best weighting of papers A.1 and B.1 (softmax of the hypotheses' log-scores).
    """
    weights = np.zeros(scores.shape)
    for b in range(scores.shape[0]):
        row = [scale * float(scores[b, k]) for k in range(lengths[b])]
        for k, value in enumerate(row):
            weights[b, k] = math.exp(value - logsumexp(row))
    return weights


# ------------------------------------------------------------ the transducer lattice


def alignments(frames: int, labels: int) -> Iterator[list[Exit]]:
    """Every way from (0, 0) out of (T-1, U): T blanks and U labels, a blank at the end.

    Blank leads from (t, u) to (t+1, u), the label y_{u+1} to (t, u+1).
    """
    steps = frames + labels
    for label_steps in itertools.combinations(range(steps - 1), labels):
        t = u = 0
        alignment = []
        for step in range(steps):
            kind = LABEL if step in label_steps else BLANK
            alignment.append((t, u, kind))
            t, u = (t, u + 1) if kind == LABEL else (t + 1, u)
        yield alignment


def exit_log_probs(logits: np.ndarray, labels, blank: int) -> np.ndarray:
    """logits (T, U+1, V), labels (U,) -> (T, U+1, 2) log-probabilities of the exits."""
    frames, rows, _ = logits.shape
    exits = np.full((frames, rows, 2), -math.inf)
    for t in range(frames):
        for u in range(rows):
            log_p = log_softmax(logits[t, u])
            exits[t, u, BLANK] = log_p[blank]
            if u < rows - 1:
                exits[t, u, LABEL] = log_p[labels[u]]
    return exits


def alignment_score(exits: np.ndarray, alignment: list[Exit]) -> float:
    """Sum of the log-probabilities along one alignment."""
    return sum(exits[step] for step in alignment)


def enumerate_lattice(exits: np.ndarray) -> tuple[float, np.ndarray, float]:
    """-> log P(labels), occupancy (T, U+1, 2), score of the best alignment.

    By listing every alignment: occupancy is the sum of P(alignment | labels) over the
    alignments that take an exit.
    """
    frames, rows, _ = exits.shape
    everything = list(alignments(frames, rows - 1))
    scores = [alignment_score(exits, alignment) for alignment in everything]
    total = logsumexp(scores)
    occupancy = np.zeros(exits.shape)
    for alignment, score in zip(everything, scores):
        for step in alignment:
            occupancy[step] += math.exp(score - total)
    return total, occupancy, max(scores)


def sweep_lattice(exits: np.ndarray) -> tuple[float, np.ndarray, float]:
    """`enumerate_lattice` by the forward-backward sweep, for lattices too big to list.

    alpha(t,u) = P(reach the node), beta(t,u) = P(finish from it),
    occupancy = alpha * exit * beta(next) / P(labels).
    """
    frames, rows, _ = exits.shape
    alpha = np.full((frames + 1, rows), -math.inf)
    best = np.full((frames + 1, rows), -math.inf)
    for t, u in np.ndindex(frames, rows):
        into = [(0.0, 0.0)] if t == u == 0 else []
        if t > 0:
            step = exits[t - 1, u, BLANK]
            into.append((alpha[t - 1, u] + step, best[t - 1, u] + step))
        if u > 0:
            step = exits[t, u - 1, LABEL]
            into.append((alpha[t, u - 1] + step, best[t, u - 1] + step))
        alpha[t, u] = logsumexp([pair[0] for pair in into])
        best[t, u] = max(pair[1] for pair in into)
    beta = np.full((frames + 1, rows + 1), -math.inf)
    beta[frames, rows - 1] = 0.0  # after the last blank
    for t in reversed(range(frames)):
        for u in reversed(range(rows)):
            ways = [exits[t, u, BLANK] + beta[t + 1, u]]
            ways.append(exits[t, u, LABEL] + beta[t, u + 1])
            beta[t, u] = logsumexp(ways)
    total = beta[0, 0]
    occupancy = np.zeros(exits.shape)
    for t, u in np.ndindex(frames, rows):
        for kind, after in ((BLANK, beta[t + 1, u]), (LABEL, beta[t, u + 1])):
            score = alpha[t, u] + exits[t, u, kind] + after
            occupancy[t, u, kind] = math.exp(score - total)
    return total, occupancy, best[-2, -1] + exits[-1, -1, BLANK]


def total_score_grad(logits: np.ndarray, labels, blank: int) -> np.ndarray:
    """d log P(labels) / dz_k = occupancy of exit k - occupancy of the node * p_k."""
    _, occupancy, _ = sweep_lattice(exit_log_probs(logits, labels, blank))
    grad = np.zeros(logits.shape)
    frames, rows, _ = logits.shape
    for t, u in np.ndindex(frames, rows):
        grad[t, u] -= occupancy[t, u].sum() * np.exp(log_softmax(logits[t, u]))
        grad[t, u, blank] += occupancy[t, u, BLANK]
        if u < rows - 1:
            grad[t, u, labels[u]] += occupancy[t, u, LABEL]
    return grad


# ---------------------------------------------------------------------- random input


@dataclass(frozen=True)
class LatticeBatch:
    """A ragged batch of lattices as float64 arrays.

    student, teacher (B, T, U+1, V); labels (B, U) without blanks; lengths (B,).
    """

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    logit_lengths: np.ndarray
    label_lengths: np.ndarray
    blank: int

    def cut(self, b: int, logits: np.ndarray | None = None):
        """Utterance b without its padding: logits (T_b, U_b+1, V), labels (U_b,)."""
        frames, count = self.logit_lengths[b], self.label_lengths[b]
        source = self.student if logits is None else logits
        return source[b, :frames, : count + 1], self.labels[b, :count]

    def padding(self) -> np.ndarray:
        """(B, T, U+1) True where a node is padding."""
        mask = np.ones(self.student.shape[:3], dtype=bool)
        for b, (frames, count) in enumerate(
            zip(self.logit_lengths, self.label_lengths)
        ):
            mask[b, :frames, : count + 1] = False
        return mask

    def poisoned(self, value: float, label: int) -> "LatticeBatch":
        """The same batch with `value` in the padded logits, `label` as padding."""
        student, teacher = self.student.copy(), self.teacher.copy()
        student[self.padding()] = teacher[self.padding()] = value
        labels = self.labels.copy()
        for b, count in enumerate(self.label_lengths):
            labels[b, count:] = label
        return replace(self, student=student, teacher=teacher, labels=labels)


def random_lengths(rng, batch: int, low: int, high: int) -> np.ndarray:
    """Lengths in [low, high] of which one is `high` and, given two, one is `low`."""
    lengths = rng.integers(low, high + 1, batch)
    lengths[0] = high
    if batch > 1:
        lengths[-1] = low
    return lengths


def random_lattices(
    seed: int,
    batch: int,
    frames: int,
    labels: int,
    classes: int,
    blank: int = 0,
    scale: float = 2.0,
    dtype=np.float64,
) -> LatticeBatch:
    """Normal logits times `scale`, rounded to `dtype`; lengths differ over the batch.

    The last utterance has the fewest frames (1) and no label at all.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, frames, labels + 1, classes)
    words = [c for c in range(classes) if c != blank]

    def logits():
        return (scale * rng.standard_normal(shape)).astype(dtype).astype(np.float64)

    return LatticeBatch(
        student=logits(),
        teacher=logits(),
        labels=rng.choice(words, (batch, labels)),
        logit_lengths=random_lengths(rng, batch, 1, frames),
        label_lengths=random_lengths(rng, batch, 0, labels),
        blank=blank,
    )


def random_alignment_nodes(rng, frames: int, labels: int) -> list[tuple[int, int]]:
    """The T + U nodes (t, u) that one random alignment visits."""
    label_steps = rng.permutation(frames + labels - 1)[:labels]
    t = u = 0
    nodes = []
    for step in range(frames + labels):
        nodes.append((t, u))
        t, u = (t, u + 1) if step in label_steps else (t + 1, u)
    return nodes


# -------------------------------------------------------------- the joint network

# name -> (activation, its derivative)
ACTIVATIONS = {
    "tanh": (np.tanh, lambda x: 1.0 - np.tanh(x) ** 2),
    "relu": (lambda x: np.maximum(x, 0.0), lambda x: (x > 0).astype(float)),
    "identity": (lambda x: x, lambda x: np.ones_like(x)),
}


@dataclass(frozen=True)
class Joint:
    """z(t, u) = W f(e_t + d_u) + b for a batch: the two inputs and the output layer.

    encoder (B, T, J), decoder (B, U+1, J), weight (V, J), bias (V,) or None.
    """

    encoder: np.ndarray
    decoder: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    activation: str

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays by name, without a bias that is absent."""
        names = ("encoder", "decoder", "weight", "bias")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def logits(self) -> np.ndarray:
        """(B, T, U+1, V), one node at a time."""
        f, _ = ACTIVATIONS[self.activation]
        batch, frames, _ = self.encoder.shape
        shape = (batch, frames, self.decoder.shape[1], len(self.weight))
        logits = np.zeros(shape)
        for b, t, u in np.ndindex(*shape[:3]):
            logits[b, t, u] = self.weight @ f(self.encoder[b, t] + self.decoder[b, u])
            if self.bias is not None:
                logits[b, t, u] += self.bias
        return logits

    def backward(self, grad: np.ndarray) -> dict[str, np.ndarray]:
        """d L / d parts from grad = d L / dz (B, T, U+1, V), by the chain rule.

        With h = f(a), a = e_t + d_u: dW = g h', db = g, da = f'(a) * (W' g), and a
        feeds e_t and d_u alike. A node without a gradient is not read, so that padding
        of any content has the gradient 0.
        """
        f, slope = ACTIVATIONS[self.activation]
        grads = {name: np.zeros_like(part) for name, part in self.parts().items()}
        for b, t, u in np.ndindex(*grad.shape[:3]):
            g = grad[b, t, u]
            if not g.any():
                continue
            a = self.encoder[b, t] + self.decoder[b, u]
            grads["weight"] += np.outer(g, f(a))
            if self.bias is not None:
                grads["bias"] += g
            da = slope(a) * (self.weight.T @ g)
            grads["encoder"][b, t] += da
            grads["decoder"][b, u] += da
        return grads

    def poisoned(self, logit_lengths, label_lengths, value: float) -> "Joint":
        """`value` in the frames t >= T_b and in the rows u > U_b."""
        encoder, decoder = self.encoder.copy(), self.decoder.copy()
        for b, (frames, count) in enumerate(zip(logit_lengths, label_lengths)):
            encoder[b, frames:] = value
            decoder[b, count + 1 :] = value
        return replace(self, encoder=encoder, decoder=decoder)


def random_joint(
    rng, batch, frames, rows, classes, width, activation, bias, scale
) -> Joint:
    """Logits come out with a standard deviation of about `scale`."""
    return Joint(
        encoder=rng.standard_normal((batch, frames, width)),
        decoder=rng.standard_normal((batch, rows, width)),
        weight=rng.standard_normal((classes, width)) * scale / math.sqrt(width),
        bias=scale * rng.standard_normal(classes) if bias else None,
        activation=activation,
    )


# ------------------------------------------------- bands, topologies and their score


def step_to(t: int, u: int, kind: int, topology: str) -> tuple[int, int]:
    """Blank leads to (t+1, u); a label to (t, u+1), modified: to (t+1, u+1)."""
    if kind == BLANK:
        return t + 1, u
    return (t, u + 1) if topology == "regular" else (t + 1, u + 1)


def alignments_of(frames: int, labels: int, topology: str) -> Iterator[list[Exit]]:
    """`alignments`; modified: each frame emits blank or one label, T exits in all."""
    if topology == "regular":
        yield from alignments(frames, labels)
        return
    for label_frames in itertools.combinations(range(frames), labels):
        u, alignment = 0, []
        for t in range(frames):
            kind = LABEL if t in label_frames else BLANK
            alignment.append((t, u, kind))
            u += kind == LABEL
        yield alignment


def inside_band(exits: np.ndarray, rows: np.ndarray, topology: str) -> np.ndarray:
    """`exits` without those that leave or enter a node outside the band.

    rows (T, S): row u exists at frame t only if it is one of rows[t]. After the last
    frame comes the end of every alignment, which is in any band.
    """
    frames, count, _ = exits.shape
    kept = exits.copy()

    def exists(t: int, u: int) -> bool:
        return t == frames or u in rows[t]

    for t, u in np.ndindex(frames, count):
        for kind in (BLANK, LABEL):
            after = step_to(t, u, kind, topology)
            if not (exists(t, u) and exists(*after)):
                kept[t, u, kind] = -math.inf
    return kept


def list_lattice(exits: np.ndarray, topology: str) -> tuple[float, np.ndarray, float]:
    """`enumerate_lattice` of either topology: log P, occupancy, best score."""
    frames, rows, _ = exits.shape
    everything = list(alignments_of(frames, rows - 1, topology))
    scores = [alignment_score(exits, alignment) for alignment in everything]
    total = logsumexp(scores)
    occupancy = np.zeros(exits.shape)
    for alignment, score in zip(everything, scores):
        for step in alignment:
            occupancy[step] += math.exp(score - total)
    return total, occupancy, max(scores)


def occupancy_grad(logits, labels, blank: int, occupancy: np.ndarray) -> np.ndarray:
    """d log P / dz_k = occupancy of exit k - occupancy of the node * p_k.

    It holds for every topology and band, as log P is a sum over products of exits.
    """
    grad = np.zeros(logits.shape)
    for t, u in np.ndindex(*occupancy.shape[:2]):
        if occupancy[t, u].any():
            grad[t, u] = -occupancy[t, u].sum() * np.exp(log_softmax(logits[t, u]))
            grad[t, u, blank] += occupancy[t, u, BLANK]
            if u < len(labels):
                grad[t, u, labels[u]] += occupancy[t, u, LABEL]
    return grad


# ------------------------------------ the grid of nodes, classes and divergences


def class_targets(teacher, classes, label, blank, k, tail, temperature):
    """One teacher node (V,) -> groups of classes, log of the teacher's mass of each.

    full: every class. collapsed: {label}, {blank}, {rest}. topk: blank and the best of
    the others, k in all; tail "bucket" adds one class of all others, "renormalize"
    divides the k masses by their sum and gives the others none.
    """
    size = len(teacher)
    if classes == "full":
        groups = full_groups(size)
    elif classes == "collapsed":
        groups = collapsed_groups(size, label, blank)
    else:
        log_q = log_softmax(teacher, temperature)
        kept = topk_classes(log_q, k, [blank])
        groups = [[c] for c in kept]
        if tail == "renormalize":
            norm = logsumexp(log_q[kept])
            groups.append([c for c in range(size) if c not in kept])
            return groups, [*(log_q[c] - norm for c in kept), -math.inf]
        if k < size:
            groups.append([c for c in range(size) if c not in kept])
    return groups, group_masses(teacher, groups, temperature)


@dataclass(frozen=True, eq=False)
class GridCase:
    """A batch of lattices with a joint network on each side, and one cell of the grid.

    `batch` holds the dense logits of `student` and `teacher`. path (B, N, 2) with
    path_lengths (B,), ranges (B, T, S), weights (B, T, U+1) or None; the padding of a
    path is -1, that of weights NaN.
    """

    batch: LatticeBatch
    student: Joint
    teacher: Joint
    classes: str
    tail: str = "bucket"
    k: int = 1
    temperature: float = 1.0
    shift: int = 0
    reduction: str = "batch"
    topology: str = "regular"
    path: np.ndarray | None = None
    path_lengths: np.ndarray | None = None
    ranges: np.ndarray | None = None
    weights: np.ndarray | None = None
    divergence: str = "kl"

    def nodes(self) -> Iterator[tuple[int, int, int]]:
        """The teacher's nodes (b, t, u): of the path, of the band, or all."""
        if self.path is not None:
            for b, size in enumerate(self.path_lengths):
                yield from ((b, int(t), int(u)) for t, u in self.path[b, :size])
            return
        for b, t, u in np.ndindex(*self.batch.student.shape[:3]):
            inside = (
                t < self.batch.logit_lengths[b] and u <= self.batch.label_lengths[b]
            )
            if inside and (self.ranges is None or u in self.ranges[b, t]):
                yield b, t, u

    @functools.cached_property
    def kd_nodes(self) -> list[Node]:
        """D(teacher at (t, u) || student at (t + shift, u)), weighted.

        Nodes whose t + shift is not a frame of the utterance are dropped, and so are
        those of a band that the band does not contain there. A path is not restricted.
        """
        batch, nodes = self.batch, []
        for b, t, u in self.nodes():
            if not 0 <= t + self.shift < batch.logit_lengths[b]:
                continue
            banded = self.path is None and self.ranges is not None
            if banded and u not in self.ranges[b, t + self.shift]:
                continue
            label = int(batch.labels[b, u]) if u < batch.label_lengths[b] else None
            groups, log_q = class_targets(
                batch.teacher[b, t, u],
                self.classes,
                label,
                batch.blank,
                self.k,
                self.tail,
                self.temperature,
            )
            where = (b, t + self.shift, u)
            logits, temperature = batch.student[where], self.temperature
            args = (logits, groups, log_q, temperature, self.divergence)
            weight = 1.0 if self.weights is None else self.weights[b, t, u]
            value, grad = weight * grouped(*args), weight * grouped_grad(*args)
            nodes.append(Node(where, value, grad))
        return nodes

    def kd(self) -> tuple[float | np.ndarray, list[Node]]:
        """The reduced KD loss, and its nodes."""
        nodes = self.kd_nodes
        return reduced(nodes, len(self.batch.labels), self.reduction), nodes

    @functools.cached_property
    def transducer(self) -> tuple[np.ndarray, np.ndarray]:
        """-log P(labels) (B,) and the gradient of their sum (B, T, U+1, V)."""
        batch = self.batch
        losses, grad = np.zeros(len(batch.labels)), np.zeros(batch.student.shape)
        for b in range(len(losses)):
            logits, labels = batch.cut(b)
            exits = exit_log_probs(logits, labels, batch.blank)
            if self.ranges is not None:
                exits = inside_band(exits, self.ranges[b], self.topology)
            total, occupancy, _ = list_lattice(exits, self.topology)
            losses[b] = -total
            one = occupancy_grad(logits, labels, batch.blank, occupancy)
            grad[b, : one.shape[0], : one.shape[1]] = -one
        return losses, grad

    def student_grad(self, transducer_weights, kd_weights) -> np.ndarray:
        """d (sum_b v_b transducer_b + sum_b w_b kd_b) / dz (B, T, U+1, V).

        For a scalar reduction both weights are numbers.
        """
        shape = self.batch.student.shape
        share = np.asarray(transducer_weights, dtype=float)
        if self.reduction != "none":
            share = np.full(shape[0], share / shape[0])
        grad = self.transducer[1] * share[:, None, None, None]
        nodes = self.kd_nodes
        if self.reduction == "none":
            return grad + reduced_grad(nodes, shape, "none", kd_weights)
        return grad + kd_weights * reduced_grad(nodes, shape, self.reduction)


def random_path_nodes(rng, frames: int, labels: int, topology: str):
    """The nodes (t, u) that one random alignment visits: T + U, modified: T."""
    if topology == "regular":
        return random_alignment_nodes(rng, frames, labels)
    label_frames = rng.permutation(frames)[:labels]
    rows = np.cumsum([0] + [t in label_frames for t in range(frames - 1)])
    return list(enumerate(rows))


def random_path(rng, batch: LatticeBatch, topology: str = "regular"):
    """-> path (B, N, 2) with -1 as padding, path_lengths (B,)."""
    paths = [
        random_path_nodes(rng, frames, count, topology)
        for frames, count in zip(batch.logit_lengths, batch.label_lengths)
    ]
    lengths = np.array([len(one) for one in paths])
    path = np.full((len(paths), lengths.max() + 1, 2), -1)
    for b, one in enumerate(paths):
        path[b, : lengths[b]] = one
    return path, lengths


def random_ranges(rng, batch: LatticeBatch) -> np.ndarray:
    """(B, T, S) bands of S rows that rise with the frames; padded frames hold row 0.

    Each holds the first row at frame 0 and the last row at the last frame, and shares
    a row with the band of the next frame, so that some alignment stays inside.
    """
    counts, lengths = batch.label_lengths, batch.logit_lengths
    width = 1 + max(-(-count // frames) for count, frames in zip(counts, lengths))
    width = min(width + int(rng.integers(0, 2)), batch.labels.shape[1] + 1)
    ranges = np.zeros((*batch.student.shape[:2], width), dtype=int)
    for b, frames in enumerate(lengths):
        start, last = 0, max(counts[b] + 1 - width, 0)
        for t in range(frames):
            left = frames - 1 - t  # steps of at most width - 1 rows that remain
            low = max(start, last - left * (width - 1))
            high = min(start + width - 1, last) if t else 0
            start = int(rng.integers(low, max(low, high) + 1))
            ranges[b, t] = np.arange(start, start + width)
    return ranges


@functools.lru_cache(maxsize=None)
def random_case(
    seed: int,
    nodes: str = "lattice",
    classes: str = "full",
    tail: str = "bucket",
    **fixed,
) -> GridCase:
    """A random cell: lengths, V, joint widths, activation, bias, k, blank, weights...

    nodes: "lattice", "band", "path"; with " shifted" after it the student is read 1 or
    2 frames later. `fixed` sets what is not drawn.
    """
    rng = np.random.default_rng([seed, *f"{nodes} {classes} {tail}".encode()])

    def draw(name, options):
        choice = options[int(rng.integers(len(options)))]
        return fixed.get(name, choice)

    size = draw("size", [(3, 5, 3), (4, 4, 2), (2, 6, 3), (3, 3, 4), (2, 4, 1)])
    v = draw("v", [3, 4, 7, 12, 40])
    blank = draw("blank", [0, v - 1, v // 2])
    topology = draw("topology", ["regular"])
    scale = draw("scale", [0.5, 1.5, 3.0])
    batch = random_lattices(int(rng.integers(2**31)), *size, v, blank=blank)
    if topology == "modified":
        counts = np.minimum(batch.label_lengths, batch.logit_lengths)
        batch = replace(batch, label_lengths=counts)
    sides = {}
    for side in ("student", "teacher"):
        activation = draw("activation", list(ACTIVATIONS))
        bias = draw("bias", [True, False])
        if classes == "topk" and activation == "relu":
            bias = True  # without it a hidden layer of zeros makes all classes tie
        width = draw("width", [1, 3, 6])
        shape = (size[0], size[1], size[2] + 1, v, width)
        sides[side] = random_joint(rng, *shape, activation, bias, scale)
    dense = {side: joint.logits() for side, joint in sides.items()}
    batch = replace(batch, **dense)
    where = {}
    if nodes.startswith("path"):
        where["path"], where["path_lengths"] = random_path(rng, batch, topology)
    if nodes.startswith("band"):
        where["ranges"] = random_ranges(rng, batch)
    if draw("weighted", [True, False]):
        weights = rng.uniform(0.0, 2.0, dense["student"].shape[:3])
        weights[rng.uniform(size=weights.shape) < 0.2] = 0.0
        weights[batch.padding()] = math.nan
        where["weights"] = weights
    return GridCase(
        batch=batch,
        **sides,
        classes=classes,
        tail=tail,
        k=draw("k", [1, max(1, v // 2), min(v, 8)]),
        temperature=draw("temperature", [1.0, 2.0]),
        shift=fixed.get("shift", int(rng.integers(1, 3)) if "shifted" in nodes else 0),
        reduction=draw("reduction", ["batch", "node", "none"]),
        topology=topology,
        divergence=fixed.get("divergence", "kl"),
        **where,
    )
