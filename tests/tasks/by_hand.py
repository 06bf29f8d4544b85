"""KD losses recomputed utterance by utterance, in plain loops and in float64.

Each utterance is encoded alone, by methods of stock ESPnet models; nothing is padded.
Of espnet_kd only `prune_ranges` is used, which has its own oracle. The loops are
those of tests.oracles, the gradients are its closed forms.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor

from tests import oracles

BLANK = 0


def slower(frames: Tensor, stride: int, rate: str) -> Tensor:
    """Every stride-th of frames (T, ...), or means of stride frames."""
    windows = [
        frames[start : start + stride] for start in range(0, len(frames), stride)
    ]
    return torch.stack([w[0] if rate == "stride" else w.mean(0) for w in windows])


def logits_of(
    model: torch.nn.Module,
    speech: Tensor,
    labels: Tensor,
    stride: int = 1,
    rate: str = "stride",
    is_dense: bool = False,
) -> dict[str, Tensor]:
    """Logits of one utterance: frames (T, V), tokens (U+1, V), lattice (T, U+1, V).

    The encoder output is brought to the slower rate. With `is_dense` the logits of the
    lattice are: means of them differ, as the joint network is not linear.
    """
    encoder_out, _ = model.encode(speech[None], torch.tensor([len(speech)]))
    encoded = encoder_out
    slowed = slower(encoder_out[0], stride, rate)[None]
    result = {}
    if getattr(model, "ctc", None) is not None:
        result["frames"] = model.ctc.ctc_lo(slowed)[0]
    elif hasattr(model, "ctc_lin"):
        result["frames"] = model.ctc_lin(slowed)[0]
    if hasattr(model, "joint_network"):
        prefix = torch.cat([torch.tensor([BLANK]), labels])[None]
        model.decoder.set_device(speech.device)
        decoder_out = model.decoder(prefix)
        read = encoded if is_dense else slowed
        lattice = model.joint_network(read.unsqueeze(2), decoder_out.unsqueeze(1))[0]
        result["lattice"] = slower(lattice, stride, rate) if is_dense else lattice
    elif model.decoder is not None:
        prefix = torch.cat([torch.tensor([model.sos]), labels])[None]
        lengths = torch.tensor([encoded.size(1)]), torch.tensor([prefix.size(1)])
        result["tokens"] = model.decoder(encoded, lengths[0], prefix, lengths[1])[0][0]
    return result


def numbers(logits: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: x.detach().double().numpy() for name, x in logits.items()}


Path = list[tuple[int, int]]


def best_paths(
    lattice: np.ndarray, labels: Sequence[int], n: int = 1
) -> list[tuple[float, Path]]:
    """Scores and nodes of the n best alignments of logits (T, U+1, V), best first."""
    frames, rows, _ = lattice.shape
    exits = oracles.exit_log_probs(lattice, labels, BLANK)
    best = {}
    for t, u in np.ndindex(frames, rows):
        ways = [(0.0, [])] if (t, u) == (0, 0) else []
        for before, kind in (
            ((t - 1, u), oracles.BLANK),
            ((t, u - 1), oracles.LABEL),
        ):
            for score, path in best.get(before, []):
                ways.append((score + exits[(*before, kind)], path))
        ways.sort(key=lambda way: -way[0])
        best[t, u] = [(score, path + [(t, u)]) for score, path in ways[:n]]
    end = exits[-1, -1, oracles.BLANK]
    return [(score + end, path) for score, path in best[frames - 1, rows - 1]]


def ensemble(teachers: Sequence[np.ndarray], weights, temperature: float) -> np.ndarray:
    """log of the weighted mean posterior at each node (..., V)."""
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return oracles.ensemble_log_probs(teachers, shares, temperature)


def node_classes(log_q, classes, k, tail, label, keep) -> tuple[list, list]:
    """Groups of classes, and log of the mass that log_q (V,) gives to each."""
    size = len(log_q)
    k = min(k, size)
    if classes == "full":
        groups = oracles.full_groups(size)
    elif classes == "collapsed":
        groups = oracles.collapsed_groups(size, label, BLANK)
    else:
        kept = oracles.topk_classes(log_q, k, keep)
        groups = [[c] for c in kept]
        if k < size:
            groups.append([c for c in range(size) if c not in kept])
    masses = [oracles.logsumexp(log_q[group]) for group in groups]
    if classes == "topk" and tail == "renormalize":
        norm = oracles.logsumexp(masses[:k])
        masses = [mass - norm for mass in masses[:k]] + [-math.inf] * (k < size)
    return groups, masses


def lattice_nodes(
    taught: np.ndarray,
    labels: Sequence[int],
    band: np.ndarray | None = None,
    *,
    nodes: str,
    width: int = 5,
    weighting: str = "none",
    paths: str = "best",
    num_paths: int = 1,
    **_,
) -> dict[tuple[int, int], float]:
    """Nodes (t, u) that are compared, and the factor of each.

    Args:
        taught: the teacher's logits (T, U+1, V).
        band: (T, S) rows of a pruned student.
    """
    everything = list(np.ndindex(taught.shape[:2]))
    if nodes == "path":
        found = best_paths(taught, labels, 1 if paths == "best" else num_paths)
        norm = oracles.logsumexp([score for score, _ in found])
        factors = dict.fromkeys((node for _, path in found for node in path), 0.0)
        for score, path in found:
            for node in path:
                factors[node] += math.exp(score - norm)
        return factors
    exits = oracles.exit_log_probs(taught, labels, BLANK)
    _, occupancy, _ = oracles.sweep_lattice(exits)
    if nodes == "band":
        if band is None:
            band = ranges_of(occupancy, width)
        everything = [(t, u) for t, u in everything if u in band[t]]
    is_weighted = weighting == "occupancy"
    return {node: occupancy[node].sum() if is_weighted else 1.0 for node in everything}


def ranges_of(occupancy: np.ndarray, width: int) -> np.ndarray:
    from espnet_kd.lattice import prune_ranges

    frames, rows, _ = occupancy.shape
    lengths = torch.tensor([frames]), torch.tensor([rows - 1])
    return prune_ranges(torch.tensor(occupancy)[None], *lengths, width)[0].numpy()


class Loss(NamedTuple):
    """Of one utterance: sum over nodes, their number, gradient to the logits."""

    value: float
    count: int
    gradient: np.ndarray


def utterance_loss(
    student: dict[str, np.ndarray],
    teachers: Sequence[dict[str, np.ndarray]],
    labels: Sequence[int],
    weights: Sequence[float] = (1.0,),
    band: np.ndarray | None = None,
    **loss,
) -> Loss:
    """One entry of `kd_conf.losses`."""
    nodes, classes = loss["nodes"], loss.get("classes", "full")
    temperature, shift = loss.get("temperature", 1.0), loss.get("shift", 0)
    is_sequence = nodes in ("frames", "tokens")
    kind = nodes if is_sequence else "lattice"
    taught = [teacher[kind] for teacher in teachers]
    length = min(len(each) for each in [student[kind], *taught])
    taught = [each[:length] for each in taught]
    log_q = ensemble(taught, weights, temperature)
    if is_sequence:
        compared = {(n,): 1.0 for n in range(length)}
    else:
        compared = lattice_nodes(ensemble(taught, weights, 1.0), labels, band, **loss)
    keep = () if nodes == "tokens" else (BLANK,)
    values, gradient = [], np.zeros(student[kind].shape)
    for (t, *row), factor in compared.items():
        label = labels[row[0]] if row and row[0] < len(labels) else None
        target = node_classes(
            log_q[(t, *row)],
            classes,
            loss.get("k", 8),
            loss.get("tail", "bucket"),
            label,
            keep,
        )
        # the student is read at each shift of the window; the least loss counts
        how = (temperature, loss.get("divergence", "kl"))
        tried = [
            (oracles.grouped(student[kind][at], *target, *how), at)
            for at in (
                (t + later, *row)
                for later in range(shift + 1 - loss.get("window", 1), shift + 1)
                if t + later < length
            )
        ]
        if tried:
            value, at = min(tried)
            slope = oracles.grouped_grad(student[kind][at], *target, *how)
            values.append(factor * value)
            gradient[at] += factor * slope
    return Loss(math.fsum(values), len(values), gradient)


def batch_loss(
    model: torch.nn.Module,
    teachers: Sequence[torch.nn.Module],
    batch: dict[str, Tensor],
    loss: dict,
    weights: Sequence[float] = (1.0,),
    strides: Sequence[int] | None = None,
    rate: str = "stride",
    is_dense: bool = False,
    band: Callable[[Tensor, Tensor], np.ndarray] | None = None,
    backward: bool = False,
) -> float:
    """Value of one entry of `kd_conf.losses` for a padded batch.

    Args:
        is_dense: the student's joint network is not computed in chunks.
        band: gives the rows (T, S) of a pruned student for speech and labels.
        backward: adds the gradient of loss weight * value to the model's parameters.
    """
    strides = strides or [1] * (len(teachers) + 1)
    kind = loss["nodes"] if loss["nodes"] in ("frames", "tokens") else "lattice"
    found = []
    for n, (speech, labels) in enumerate(utterances(batch)):
        with torch.set_grad_enabled(backward):
            own = logits_of(model, speech, labels, strides[0], rate, is_dense)
        with torch.no_grad():
            taught = [
                numbers(logits_of(teacher, speech, labels, stride, rate))
                for teacher, stride in zip(teachers, strides[1:])
            ]
        rows = band(speech, labels) if band else None
        one = utterance_loss(
            numbers(own), taught, labels.tolist(), weights, rows, **loss
        )
        share = float(batch["kd_weight"][n]) if "kd_weight" in batch else 1.0
        found.append((one, share, own[kind]))
    by_node = loss.get("reduction") == "node"
    count = sum(one.count for one, _, _ in found) if by_node else len(found)
    if backward:
        factor = loss.get("weight", 1.0) / count
        for one, share, logits in found:
            logits.backward(torch.tensor(factor * share * one.gradient).to(logits))
    return math.fsum(share * one.value for one, share, _ in found) / count


def utterances(batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Speech (samples,) and labels (U,) of each entry, without padding."""
    return [
        (speech[:samples], text[:tokens])
        for speech, samples, text, tokens in zip(
            batch["speech"],
            batch["speech_lengths"],
            batch["text"],
            batch["text_lengths"],
        )
    ]


# ------------------------------------------------------------- sequences of labels


def log_sum(ways: Sequence[Tensor]) -> Tensor | None:
    """log sum exp of scores, None for an empty list."""
    ways = [way for way in ways if way is not None]
    return torch.stack(ways).logsumexp(0) if ways else None


def transducer_score(
    log_probs: Tensor, labels: Sequence[int], band: np.ndarray | None = None
) -> Tensor:
    """log P(labels) of log-probabilities (T, U+1, V), by the forward variables."""
    frames, rows, _ = log_probs.shape
    reached = {(-1, 0): log_probs.new_zeros(())}
    for t, u in np.ndindex(frames, rows):
        if band is not None and u not in band[t]:
            continue
        way = reached.get((t - 1, u)), reached.get((t, u - 1))
        blank = way[0] if t == 0 or way[0] is None else way[0] + log_probs[t - 1, u, 0]
        label = None if way[1] is None else way[1] + log_probs[t, u - 1, labels[u - 1]]
        score = log_sum([blank, label])
        if score is not None:
            reached[t, u] = score
    return reached[frames - 1, rows - 1] + log_probs[-1, -1, BLANK]


def ctc_score(log_probs: Tensor, labels: Sequence[int]) -> Tensor:
    """log P(labels) of log-probabilities (T, V), by the forward variables."""
    states = [BLANK]
    for label in labels:
        states += [label, BLANK]
    before = {-1: log_probs.new_zeros(())}  # before the first state
    for frame in log_probs:
        now = {}
        for s, symbol in enumerate(states):
            ways = [before.get(s), before.get(s - 1)]
            is_start = s == 1 and -1 in before
            if is_start or (s >= 2 and symbol not in (BLANK, states[s - 2])):
                ways.append(before.get(s - 2))
            score = log_sum(ways)
            if score is not None:
                now[s] = score + frame[symbol]
        before = now
    return log_sum([before.get(len(states) - 1), before.get(len(states) - 2)])


def token_score(log_probs: Tensor, labels: Sequence[int]) -> Tensor:
    """log P(labels, <eos>) of log-probabilities (U+1, V); <eos> is the last class."""
    eos = log_probs.size(-1) - 1
    return sum(row[symbol] for row, symbol in zip(log_probs, [*labels, eos]))


SCORES = dict(lattice=transducer_score, frames=ctc_score, tokens=token_score)


def sequence_loss(
    model: torch.nn.Module,
    teachers: Sequence[torch.nn.Module],
    batch: dict[str, Tensor],
    loss: dict,
    lists: Sequence[Sequence[int]],
    kind: str,
    weights: Sequence[float] = (1.0,),
    band: Callable[[Tensor, Tensor], np.ndarray] | None = None,
) -> Tensor:
    """`nodes: sequence`, differentiable.

    Args:
        lists: entries of the batch that are hypotheses of one utterance.
        kind: nodes by which log P(labels) is computed.
    """
    scores = []
    for speech, labels in utterances(batch):
        own = logits_of(model, speech, labels)[kind].double().log_softmax(-1)
        with torch.no_grad():
            taught = [logits_of(teacher, speech, labels)[kind] for teacher in teachers]
        frames = min(
            len(each) for each in ([own, *taught] if kind != "tokens" else taught)
        )
        mean = sum(
            weight / sum(weights) * each[:frames].double().softmax(-1)
            for weight, each in zip(weights, taught)
        )
        rows = [band(speech, labels)] if band else []
        labels = labels.tolist()
        scores.append(
            (SCORES[kind](own, labels, *rows), SCORES[kind](mean.log(), labels))
        )
    distance, temperature = loss.get("distance", "kl"), loss.get("temperature", 1.0)
    sums = []
    for entries in lists:
        s, t = (torch.stack(x) for x in zip(*(scores[n] for n in entries)))
        if distance in ("kl", "reverse_kl", "jsd"):
            p, q = ((x / temperature).softmax(0) for x in (s, t))
            m = (p + q) / 2
            pairs = dict(kl=[(q, p)], reverse_kl=[(p, q)], jsd=[(q, m), (p, m)])
            terms = [(x * (x / y).log()).sum() for x, y in pairs[distance]]
            sums.append(temperature**2 * sum(terms) / len(terms))
        else:
            sums.append((s - t).abs().pow({"l1": 1, "l2": 2}[distance]).sum())
    by_node = loss.get("reduction") == "node" and distance in ("l1", "l2")
    return sum(sums) / (len(scores) if by_node else len(lists))
