"""A teacher's answers about nodes of a transducer lattice.

A teacher answers up to three questions about N nodes, at a temperature:

    log_probs(nodes)       all classes, (N, V)
    topk(nodes, k)         its k best classes and their log-probabilities, (N, k) each
    collapsed(nodes, ids)  log-probabilities of {label, blank, rest}, (N, 3)

An `OnlineTeacher` computes the answers from lattices, a stored one looks them up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from espnet_kd.lattice.kept_classes import class_log_probs
from espnet_kd.lattice.logits import FactoredLogits, Logits
from espnet_kd.lattice.masks import LOG_ZERO, upcast
from espnet_kd.lattice.nodes import Nodes
from espnet_kd.lattice.reading import chunks, read_nodes
from espnet_kd.lattice.rows import full_precision, reader_of
from espnet_kd.losses.log_space import log_complement, soften
from espnet_kd.losses.nodes import path_mask
from espnet_kd.losses.topk import topk_targets


class Teacher(Protocol):
    """Answers about nodes; each method raises ValueError where it has none."""

    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor: ...

    def topk(
        self, nodes: Nodes, k: int, blank: int, temperature: float
    ) -> tuple[Tensor, Tensor]: ...

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor: ...


class OnlineTeacher:
    """One or several models' lattices; their mean posterior where there are several.

    Args:
        logits: (B, T, U+1, V) of each model, dense or factored; T may differ.
        weights: one per model, >= 0; divided by their sum. None: equal.
    """

    def __init__(
        self, logits: Sequence[Logits], weights: Sequence[float] | None = None
    ) -> None:
        weights = weights or [1.0] * len(logits)
        members = [(z, w / sum(weights)) for z, w in zip(logits, weights) if w > 0]
        self.logits = [_detached(z) for z, _ in members]
        self.log_weights = [math.log(w) for _, w in members]
        self.readers = [reader_of(z) for z in self.logits]

    def _mean(self, log_probs: Sequence[Tensor]) -> Tensor:
        """Log of the weighted mean of the members' probabilities."""
        if len(log_probs) == 1:
            return log_probs[0]
        shares = [x + w for x, w in zip(log_probs, self.log_weights)]
        return torch.stack(shares).logsumexp(0).clamp(min=LOG_ZERO)

    @torch.no_grad()
    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor:
        members = []
        for reader in self.readers:
            with full_precision(reader, nodes.row.device):
                members.append(soften(reader.read(nodes), temperature))
            reader.release()  # the graph of a loss may hold the teacher for long
        return self._mean(members)

    @torch.no_grad()
    def topk(
        self, nodes: Nodes, k: int, blank: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        device, (classes, width) = nodes.row.device, self._sizes()
        found = [
            topk_targets(
                self.log_probs(some, temperature), min(k, classes), keep=(blank,)
            )
            for _, some in chunks(nodes, 2 * width, device)
        ]
        values, ids = zip(*found)
        return torch.cat(values), torch.cat(ids)

    @torch.no_grad()
    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        members = []
        for logits in self.logits:
            read = read_nodes(logits, nodes, ids, (temperature,))
            members.append(
                class_log_probs(
                    read.scores, read.rest[:, 0], ids, slice(None), temperature
                )
            )
        return self._mean(members)

    def _sizes(self) -> tuple[int, int]:
        """Classes, and numbers that a node takes while it is read."""
        width = sum(reader.width for reader in self.readers)
        return self.logits[0].shape[-1], width


def _detached(logits: Logits) -> Logits:
    if not isinstance(logits, FactoredLogits):
        return logits.detach()
    tensors = (None if x is None else x.detach() for x in logits.tensors)
    return FactoredLogits(*tensors, logits.activation, logits.is_half)


class StoredLattice(NamedTuple):
    """Log-probabilities that were stored for each node, at temperature 1.

    They answer for {label, blank, rest}; the rest is the remaining mass.
    """

    blank: Tensor  # (B, T, U+1)
    label: Tensor  # (B, T, U+1); the row u = U_b is not used

    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor:
        raise ValueError(
            "teacher: stored lattices hold labels and blanks only; use classes "
            "'collapsed', or a teacher that computes"
        )

    def topk(self, nodes: Nodes, k: int, blank: int, temperature: float):
        return self.log_probs(nodes, temperature)

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        if temperature != 1:
            raise ValueError(
                f"temperature: {temperature}, but the stored lattices were made at "
                "temperature 1, from which the rest cannot be softened"
            )
        label_first = (x.to(ids.device) for x in (self.label, self.blank))
        kept = torch.stack([upcast(x[tuple(nodes)]) for x in label_first], 1)
        # Where no label leaves a node its id is blank's.
        has_label = ids[:, 0] != ids[:, 1]
        counted = torch.stack([has_label, torch.ones_like(has_label)], dim=1)
        mass = kept.masked_fill(~counted, LOG_ZERO).logsumexp(1, keepdim=True)
        # rounding of what was stored may have taken the sum above one
        rest = log_complement(mass).clamp(min=LOG_ZERO)
        return torch.cat([kept - mass.clamp(min=0), rest], dim=1)


class StoredPath(NamedTuple):
    """Top-k log-probabilities that were stored for each node of a path.

    They carry the temperature that they were made with.
    """

    log_probs: Tensor  # (B, N, K)
    ids: Tensor  # (B, N, K); a node with fewer classes repeats one of them


class PathTeacher:
    """Answers from a `StoredPath`, at the nodes of its path (B, N, 2) only."""

    def __init__(
        self,
        stored: StoredPath,
        path: Tensor,
        path_lengths: Tensor,
        device: torch.device,
    ) -> None:
        shapes = [tuple(x.shape) for x in stored]
        if shapes[0] != shapes[1] or shapes[0][:2] != tuple(path.shape[:2]):
            raise ValueError(
                f"teacher: stored log_probs and ids of shapes {shapes} do not fit a "
                f"path of shape {tuple(path.shape)}, expected (B, N, K) for both"
            )
        self.stored = StoredPath(*(x.to(device) for x in stored))
        path = path.to(device)
        utterance, step = path_mask(path, path_lengths).nonzero(as_tuple=True)
        frame, row = path[utterance, step].unbind(-1)
        shape = (len(path), *(int(x.max()) + 1 if len(x) else 1 for x in (frame, row)))
        self.index = step.new_zeros(shape)
        self.index[utterance, frame, row] = step

    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor:
        raise ValueError(
            "teacher: stored paths hold top-k classes only; use classes 'topk', or a "
            "teacher that computes"
        )

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        return self.log_probs(nodes, temperature)

    def topk(
        self, nodes: Nodes, k: int, blank: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        step = self.index[tuple(nodes)]
        values, ids = (x[nodes.utterance, step] for x in self.stored)
        return upcast(values), ids.long()


def as_teacher(teacher: Logits | Teacher) -> Teacher:
    """A lattice as an `OnlineTeacher`; any other teacher unchanged."""
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
    expected = tuple(student.shape[: max(3, len(given))])
    is_equal = given == expected
    if not same_frames:
        is_equal = given[:1] + given[2:] == expected[:1] + expected[2:]
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
