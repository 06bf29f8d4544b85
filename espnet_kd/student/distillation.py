"""The KD losses of one batch, from the student's outputs and its teachers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import torch
from torch import Tensor

from espnet_kd.lattice import best_path
from espnet_kd.losses import (
    collapsed_lattice_kd,
    essence_kd,
    full_lattice_kd,
    gather_path,
    path_kd,
    topk_targets,
)
from espnet_kd.losses.classes import soften
from espnet_kd.student.config import KDConf, LossConf
from espnet_kd.student.outputs import Outputs
from espnet_kd.student.rates import slow_down
from espnet_kd.teacher.soft import Encoded, SoftTeacher


@dataclass(frozen=True)
class Symbols:
    """Indices of the special tokens, equal in student and teachers."""

    blank: int
    sos: int
    padding: int


@dataclass(frozen=True)
class Strides:
    """Frames of each side that make one frame at the common rate."""

    student: int
    teachers: Sequence[int]


class Distillation:
    """What `kd_conf` asks for, bound to its teachers.

    Every entry of `conf.losses` names one kind of nodes, which student and teachers
    have.
    """

    def __init__(
        self, conf: KDConf, teacher: SoftTeacher, strides: Strides, symbols: Symbols
    ) -> None:
        self.conf = conf
        self.teacher = teacher
        self.strides = strides
        self.symbols = symbols
        self.names = stats_names(conf.losses)

    def __call__(
        self, outputs: Outputs, speech: Tensor, speech_lengths: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the KD losses, and each of them by its name.

        speech (B, samples), speech_lengths (B,). Computed in fp32 under autocast too.
        """
        batch = _Batch(self, outputs, self.teacher.encode(speech, speech_lengths))
        total, parts = speech.new_zeros(()), {}
        for name, loss in zip(self.names, self.conf.losses):
            sums, nodes = getattr(batch, loss.nodes)(loss)
            if outputs.weights is not None:
                sums = sums * outputs.weights.to(sums.dtype)
            count = len(sums) if loss.reduction == "batch" else nodes.clamp(min=1)
            value = sums.sum() / count
            total = total + loss.weight * value
            parts[name] = value.detach()
        return total, parts


class _Batch:
    """One batch: each kind of nodes gives (sums over nodes (B,), number of nodes)."""

    def __init__(
        self, kd: Distillation, outputs: Outputs, encoded: list[Encoded]
    ) -> None:
        self.kd = kd
        self.outputs = outputs
        self.encoded = encoded
        self.slowed = [
            slow_down(*each, stride, kd.conf.rate)
            for each, stride in zip(encoded, kd.strides.teachers)
        ]
        lengths = torch.stack([lengths for _, lengths in self.slowed])
        self.teacher_frames = lengths.amin(0)

    def frames(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        frames = self.outputs.frames
        student, lengths = self._at_common_rate(frames.logits, frames.lengths)
        logits = self.kd.teacher.frames(self.slowed)
        teacher = self.kd.teacher.mean(logits, loss.temperature)
        student, teacher = _cut(student, teacher)
        keep = (self.kd.symbols.blank,)
        return _sequence_kd(student, teacher, lengths, loss, keep), lengths.sum()

    def tokens(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        tokens, symbols = self.outputs.tokens, self.kd.symbols
        padding = tokens.targets == symbols.padding
        lengths = (~padding).sum(1)
        labels_in = tokens.targets.masked_fill(padding, symbols.sos).roll(1, dims=1)
        labels_in[:, 0] = symbols.sos
        logits = self.kd.teacher.tokens(self.encoded, labels_in, lengths)
        teacher = self.kd.teacher.mean(logits, loss.temperature)
        return _sequence_kd(tokens.logits, teacher, lengths, loss), lengths.sum()

    def lattice(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        if loss.classes == "topk":
            return self._path_kd(loss, *self._all_nodes)
        student, teacher = self._lattices(loss.temperature)
        kd = collapsed_lattice_kd if loss.classes == "collapsed" else full_lattice_kd
        lengths = self._labels_and_lengths
        sums = kd(
            student,
            teacher,
            *lengths,
            blank=self.kd.symbols.blank,
            temperature=loss.temperature,
            reduction="none",
        )
        return sums, (lengths[1] * (lengths[2] + 1)).sum()

    def path(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        return self._path_kd(loss, *self._best_path)

    def _path_kd(
        self, loss: LossConf, path: Tensor, path_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher = self._lattices(loss.temperature)
        frames = self._labels_and_lengths[1]
        read = torch.arange(path.size(1), device=path.device) < path_lengths[:, None]
        # Frames do not decrease along a path, so late nodes are its last ones.
        read &= path[..., 0] + loss.shift < frames[:, None]
        lengths = read.sum(1)
        if loss.classes == "full":
            sums = path_kd(
                student,
                teacher,
                path,
                path_lengths,
                shift=loss.shift,
                student_lengths=frames,
                temperature=loss.temperature,
                reduction="none",
            )
        else:
            sums = _sequence_kd(
                gather_path(student, path, loss.shift),
                gather_path(teacher, path),
                lengths,
                loss,
                keep=(self.kd.symbols.blank,),
            )
        return sums, lengths.sum()

    @cached_property
    def _student_lattice(self) -> tuple[Tensor, Tensor]:
        lattice = self.outputs.lattice
        return self._at_common_rate(lattice.logits(), lattice.frames)

    @cached_property
    def _teacher_lattices(self) -> list[Tensor]:
        lattice = self.outputs.lattice
        return self.kd.teacher.lattice(
            self.slowed, lattice.labels, lattice.label_lengths
        )

    @cached_property
    def _labels_and_lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        lattice = self.outputs.lattice
        return lattice.labels, self._student_lattice[1], lattice.label_lengths

    def _lattices(self, temperature: float) -> tuple[Tensor, Tensor]:
        teacher = self.kd.teacher.mean(self._teacher_lattices, temperature)
        return _cut(self._student_lattice[0], teacher)

    @cached_property
    def _best_path(self) -> tuple[Tensor, Tensor]:
        path, lengths, _ = best_path(
            self._lattices(1.0)[1],
            *self._labels_and_lengths,
            blank=self.kd.symbols.blank,
        )
        return path, lengths

    @cached_property
    def _all_nodes(self) -> tuple[Tensor, Tensor]:
        """Every node of every lattice in frame order, as a path (B, N, 2)."""
        _, frames, label_lengths = self._labels_and_lengths
        rows = label_lengths.long() + 1
        lengths = frames.long() * rows
        nodes = torch.arange(int(lengths.max()), device=frames.device)
        nodes = torch.minimum(nodes[None], lengths[:, None] - 1)
        t = nodes.div(rows[:, None], rounding_mode="floor")
        return torch.stack([t, nodes - t * rows[:, None]], dim=-1), lengths

    def _at_common_rate(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The student's frames, no more of them than the teachers have."""
        x, lengths = slow_down(x, lengths, self.kd.strides.student, self.kd.conf.rate)
        return x, torch.minimum(lengths.to(self.teacher_frames), self.teacher_frames)


def _sequence_kd(
    student: Tensor,
    teacher: Tensor,
    lengths: Tensor,
    loss: LossConf,
    keep: tuple[int, ...] = (),
) -> Tensor:
    """KD over sequences of nodes: logits (B, L, V) of both sides, sums (B,)."""
    options = dict(temperature=loss.temperature, reduction="none")
    if loss.classes == "full":
        # A sequence of nodes is a lattice without labels.
        none = lengths.new_zeros(len(lengths), 0)
        return full_lattice_kd(
            student.unsqueeze(2),
            teacher.unsqueeze(2),
            none,
            lengths,
            torch.zeros_like(lengths),
            **options,
        )
    log_probs = soften(teacher, loss.temperature)
    k = min(loss.k, log_probs.size(-1))
    targets = topk_targets(log_probs, k, keep=keep)
    return essence_kd(student, *targets, lengths, tail=loss.tail, **options)


def _cut(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    frames = min(student.size(1), teacher.size(1))
    return student[:, :frames], teacher[:, :frames]


def stats_names(losses: Sequence[LossConf]) -> list[str]:
    """`loss_kd_<nodes>`, with the classes where several losses share the nodes."""
    nodes = [loss.nodes for loss in losses]
    names = [
        f"loss_kd_{loss.nodes}"
        + (f"_{loss.classes}" if nodes.count(loss.nodes) > 1 else "")
        for loss in losses
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{index}"
        for index, name in enumerate(names)
    ]
