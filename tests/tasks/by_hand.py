"""KD losses recomputed utterance by utterance, in plain loops and in float64.

Each utterance is encoded alone, by methods of stock ESPnet models; nothing is padded
and nothing of espnet_kd is used. The loops are those of tests.oracles.
"""

from __future__ import annotations

import math
from typing import Sequence

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


@torch.no_grad()
def outputs(
    model: torch.nn.Module,
    speech: Tensor,
    labels: Tensor,
    stride: int = 1,
    rate: str = "stride",
    is_teacher: bool = False,
) -> dict[str, np.ndarray]:
    """Logits of one utterance: frames (T, V), tokens (U+1, V), lattice (T, U+1, V).

    A teacher's encoder output is brought to the slower rate, a student's logits are.
    """
    encoder_out, _ = model.encode(speech[None], torch.tensor([len(speech)]))
    heard = encoder_out
    if is_teacher:
        encoder_out = slower(encoder_out[0], stride, rate)[None]
    result = {}
    if getattr(model, "ctc", None) is not None:
        result["frames"] = model.ctc.ctc_lo(encoder_out)[0]
    elif hasattr(model, "ctc_lin"):
        result["frames"] = model.ctc_lin(encoder_out)[0]
    if hasattr(model, "joint_network"):
        prefix = torch.cat([torch.tensor([BLANK]), labels])[None]
        model.decoder.set_device(speech.device)
        decoder_out = model.decoder(prefix)
        result["lattice"] = model.joint_network(
            encoder_out.unsqueeze(2), decoder_out.unsqueeze(1)
        )[0]
    elif model.decoder is not None:
        prefix = torch.cat([torch.tensor([model.sos]), labels])[None]
        lengths = torch.tensor([heard.size(1)]), torch.tensor([prefix.size(1)])
        result["tokens"] = model.decoder(heard, lengths[0], prefix, lengths[1])[0][0]
    if not is_teacher:
        for name in set(result) - {"tokens"}:
            result[name] = slower(result[name], stride, rate)
    return {name: value.double().numpy() for name, value in result.items()}


def viterbi(lattice: np.ndarray, labels: Sequence[int]) -> list[tuple[int, int]]:
    """Nodes of the best alignment of logits (T, U+1, V)."""
    frames, rows, _ = lattice.shape
    best = {}
    for t in range(frames):
        for u in range(rows):
            ways = [(0.0, [])] if (t, u) == (0, 0) else []
            for before, symbol in (((t - 1, u), BLANK), ((t, u - 1), None)):
                if before in best:
                    score, path = best[before]
                    symbol = labels[u - 1] if symbol is None else symbol
                    step = oracles.log_softmax(lattice[before])[symbol]
                    ways.append((score + step, path))
            score, path = max(ways, key=lambda way: way[0])
            best[t, u] = (score, path + [(t, u)])
    return best[frames - 1, rows - 1][1]


def ensemble(teachers: Sequence[np.ndarray], weights, temperature: float) -> np.ndarray:
    """log of the weighted mean posterior at each node (..., V)."""
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return oracles.ensemble_log_probs(teachers, shares, temperature)


def node_loss(student, log_q, classes, k, tail, temperature, label, keep) -> float:
    """T^2 KL of one node: student logits (V,) against log_q (V,) of the teacher."""
    size = len(log_q)
    if classes == "full":
        groups = oracles.full_groups(size)
    elif classes == "collapsed":
        groups = oracles.collapsed_groups(size, label, BLANK)
    else:
        kept = oracles.topk_classes(log_q, k, keep)
        groups = [[c] for c in kept]
        if tail == "bucket" and k < size:
            groups.append([c for c in range(size) if c not in kept])
    masses = [oracles.logsumexp(log_q[group]) for group in groups]
    if classes == "topk" and tail == "renormalize":
        norm = oracles.logsumexp(masses)
        masses = [mass - norm for mass in masses]
    return oracles.grouped_kl(student, groups, masses, temperature)


def utterance_loss(
    student: dict[str, np.ndarray],
    teachers: Sequence[dict[str, np.ndarray]],
    labels: Sequence[int],
    weights: Sequence[float] = (1.0,),
    *,
    nodes: str,
    classes: str = "full",
    k: int = 8,
    tail: str = "bucket",
    temperature: float = 1.0,
    shift: int = 0,
    **_,
) -> tuple[float, int]:
    """Sum over the nodes of one utterance, and their number."""
    kind = "lattice" if nodes == "path" else nodes
    heard = [teacher[kind] for teacher in teachers]
    length = min(len(each) for each in [student[kind], *heard])
    heard = [each[:length] for each in heard]
    log_q = ensemble(heard, weights, temperature)
    keep = () if nodes == "tokens" else (BLANK,)
    if nodes in ("frames", "tokens"):
        where = [((n,), None, (n,)) for n in range(length)]
    else:
        if nodes == "path":
            pairs = viterbi(ensemble(heard, weights, 1.0), labels)
        else:
            pairs = list(np.ndindex(length, len(labels) + 1))
        where = [
            ((t + shift, u), labels[u] if u < len(labels) else None, (t, u))
            for t, u in pairs
            if t + shift < length
        ]
    values = [
        node_loss(
            student[kind][at],
            log_q[teacher_at],
            classes,
            min(k, log_q.shape[-1]),
            tail,
            temperature,
            label,
            keep,
        )
        for at, label, teacher_at in where
    ]
    return math.fsum(values), len(values)


def batch_loss(
    model: torch.nn.Module,
    teachers: Sequence[torch.nn.Module],
    batch: dict[str, Tensor],
    loss: dict,
    weights: Sequence[float] = (1.0,),
    strides: Sequence[int] | None = None,
    rate: str = "stride",
) -> float:
    """Value of one entry of `kd_conf.losses` for a padded batch."""
    strides = strides or [1] * (len(teachers) + 1)
    total, count = 0.0, 0
    for n, length in enumerate(batch["speech_lengths"]):
        speech = batch["speech"][n, :length]
        labels = batch["text"][n, : batch["text_lengths"][n]]
        student = outputs(model, speech, labels, strides[0], rate)
        said = [
            outputs(teacher, speech, labels, stride, rate, is_teacher=True)
            for teacher, stride in zip(teachers, strides[1:])
        ]
        value, nodes = utterance_loss(student, said, labels.tolist(), weights, **loss)
        weight = float(batch["kd_weight"][n]) if "kd_weight" in batch else 1.0
        total, count = total + weight * value, count + nodes
    utterances = len(batch["speech_lengths"])
    return total / (count if loss.get("reduction") == "node" else utterances)
