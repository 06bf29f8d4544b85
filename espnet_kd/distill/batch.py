"""The KD losses of one batch, from the student's outputs and its teachers."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Callable, Sequence

import torch
from torch import Tensor

from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.losses import LATTICE_NODES, LossConf, NodeLossConf
from espnet_kd.distill.fitting import SCORED
from espnet_kd.distill.lattice import LatticeTeacher, lattice_term
from espnet_kd.distill.outputs import Frames, Lattice, Outputs, Tokens, grid_of
from espnet_kd.distill.rates import slow_down
from espnet_kd.distill.sharing import Rows, lists_of_rows
from espnet_kd.lattice import total_score
from espnet_kd.lattice.factored import FactoredLogits, Logits
from espnet_kd.lattice.nodes import make_grid, upcast
from espnet_kd.losses import (
    LatticeTerm,
    essence_kd,
    full_lattice_kd,
    full_sum_kd,
    lattice_losses,
    topk_targets,
    windowed_losses,
)
from espnet_kd.losses.classes import soften
from espnet_kd.models.branches import Encoded, nodes_of_model
from espnet_kd.teacher.ensemble import SoftTeacher


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
        self.has_warned = False
        self.of_teachers = set.intersection(*map(nodes_of_model, teacher.models))

    def __call__(self, batch: BatchKD) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the KD losses of a batch, and each of them by its name.

        Computed in fp32 under autocast too.
        """
        outputs, parts = batch.outputs, {}
        total = batch.speech.new_zeros(())
        for name, loss in zip(self.names, batch.losses):
            sums, nodes = getattr(batch, loss.nodes)(loss)
            if outputs.weights is not None and loss.nodes != "sequence":
                sums = sums * outputs.weights.to(sums.dtype)
            count = len(sums) if loss.reduction == "batch" else nodes.clamp(min=1)
            value = sums.sum() / count
            total = total + loss.weight * value
            parts[name] = value.detach()
        return total, parts


class BatchKD:
    """The KD losses of one batch: each kind of nodes gives sums (B,) and their number.

    Args:
        kd: the student's distillation.
        losses: those of `kd_conf`, with the weights and temperatures that hold now.
        outputs: of the student's forward pass, filled while that runs.
        speech: (B, samples).
        speech_lengths: (B,).
        rows: gives the distinct rows of the batch, once the student encoded it.
    """

    def __init__(
        self,
        kd: Distillation,
        losses: Sequence[LossConf],
        outputs: Outputs,
        speech: Tensor,
        speech_lengths: Tensor,
        rows: Callable[[], Rows],
    ) -> None:
        self.kd = kd
        self.losses = losses
        self.outputs = outputs
        self.speech = speech
        self.speech_lengths = speech_lengths
        self.rows = rows
        self.autocast = _cuda_autocast(speech.device)
        self.of_lattice: dict[LossConf, tuple[Tensor, Tensor]] | None = None
        self.transducer: Tensor | None = None  # (B,), once the lattice was read for it

    @cached_property
    def encoded(self) -> list[Encoded]:
        """Each teacher's encoder output and frames."""
        rows = self.rows()
        distinct = rows.take(self.speech, self.speech_lengths)
        # KD is computed in full precision; encoding, the dear part, as by the student.
        with torch.autocast(self.speech.device.type, **self.autocast):
            encoded = self.kd.teacher.encode(*distinct)
        return rows.expand([(upcast(x), lengths) for x, lengths in encoded])

    @cached_property
    def slowed(self) -> list[Encoded]:
        """The same at the common frame rate."""
        strides, how = self.kd.strides.teachers, self.kd.conf.rate
        return [
            slow_down(*each, stride, how) for each, stride in zip(self.encoded, strides)
        ]

    @cached_property
    def teacher_frames(self) -> Tensor:
        """Frames (B,) at the common rate that all teachers have."""
        return torch.stack([lengths for _, lengths in self.slowed]).amin(0)

    def frames(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        frames = self.outputs.frames
        student, lengths = self._at_common_rate(frames.logits, frames.lengths)
        logits = self.kd.teacher.frames(self.slowed)
        teacher = self.kd.teacher.mean(logits, loss.temperature)
        student, teacher = _cut(student, teacher)
        keep = (self.kd.symbols.blank,)
        return _sequence_kd(student, teacher, lengths, loss, keep), lengths.sum()

    def tokens(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        tokens, padding = self.outputs.tokens, self.kd.symbols.padding
        lengths = (tokens.targets != padding).sum(1)
        teacher = self._teacher_tokens(loss.temperature)
        return _sequence_kd(tokens.logits, teacher, lengths, loss), lengths.sum()

    def _teacher_tokens(self, temperature: float) -> Tensor:
        """Attention logits (B, L, V) of the teachers after the student's targets."""
        targets, symbols = self.outputs.tokens.targets, self.kd.symbols
        padding = targets == symbols.padding
        labels_in = targets.masked_fill(padding, symbols.sos).roll(1, dims=1)
        labels_in[:, 0] = symbols.sos
        lengths = (~padding).sum(1)
        logits = self.kd.teacher.tokens(self.encoded, labels_in, lengths)
        return self.kd.teacher.mean(logits, temperature)

    def lattice(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        if self.of_lattice is None:
            self.read_lattice(with_transducer=False)
        return self.of_lattice[loss]

    band = path = lattice

    def sequence(self, loss: LossConf) -> tuple[Tensor, Tensor]:
        """Of each list of hypotheses, (M,); the losses are not weighted again."""
        student, teacher = self._sequence_scores
        rows, lengths = lists_of_rows(self.rows().index)
        says_nothing = rows.size(1) == 1 and loss.distance == "kl"
        if says_nothing and torch.is_grad_enabled() and not self.kd.has_warned:
            self.kd.has_warned = True
            logging.warning(
                "nodes: sequence: no two hypotheses of this batch have the same audio, "
                "so that they say nothing; make the KD set with --nbest above 1 and "
                "keep the hypotheses of an utterance in one batch"
            )
        sums = full_sum_kd(
            student[rows],
            teacher[rows],
            lengths,
            distance=loss.distance,
            temperature=loss.temperature,
            reduction="none",
        )
        nodes = lengths.sum() if loss.distance != "kl" else (lengths > 0).sum()
        return sums, nodes

    @cached_property
    def _sequence_scores(self) -> tuple[Tensor, Tensor]:
        """log P(labels) (B,) of each entry, by the student and by its teachers."""
        outputs, teacher = self.outputs, self.kd.teacher
        scored = next(
            nodes
            for nodes in SCORED
            if nodes in self.kd.of_teachers and getattr(outputs, nodes) is not None
        )
        if scored == "lattice":
            if self.transducer is None:
                self.transducer = -lattice_score(outputs.lattice, self.kd.symbols.blank)
            return -self.transducer, self.teacher_lattice.arcs.total()
        if scored == "frames":
            blank, (_, lengths) = self.kd.symbols.blank, self.slowed[0]
            logits = teacher.mean(teacher.frames(self.slowed), 1.0)
            lengths = torch.minimum(lengths, self.teacher_frames)
            said = dataclasses.replace(outputs.frames, logits=logits, lengths=lengths)
            return ctc_scores(outputs.frames, blank), ctc_scores(said, blank)
        logits = self._teacher_tokens(1.0)
        said = Tokens(logits, outputs.tokens.targets)
        padding = self.kd.symbols.padding
        return token_scores(outputs.tokens, padding), token_scores(said, padding)

    @property
    def asks_lattice(self) -> bool:
        """Whether a loss is computed on the transducer lattice, if there is one."""
        return any(loss.nodes in (*LATTICE_NODES, "sequence") for loss in self.losses)

    def read_lattice(self, with_transducer: bool) -> Tensor | None:
        """All losses of the transducer lattice in one pass over the student's.

        Returns:
            -log P(labels) (B,) if asked for.
        """
        conf, blank = self.kd.conf, self.kd.symbols.blank
        with torch.autocast(self.speech.device.type, enabled=False):
            terms = {
                loss: self._term(loss)
                for loss in self.losses
                if loss.nodes in LATTICE_NODES
            }
            options = dict(blank=blank, tolerance=conf.tolerance)
            together = {loss: x for loss, x in terms.items() if loss.window == 1}
            transducer, sums = self._read_together(
                list(together.values()), with_transducer, options
            )
            self.of_lattice = {
                loss: (each, term.nodes.sum())
                for (loss, term), each in zip(together.items(), sums)
            }
            for loss, term in terms.items():
                if loss.window > 1:
                    self.of_lattice[loss] = windowed_losses(
                        self._slow_logits,
                        self.teacher_lattice.grid,
                        term,
                        loss.window,
                        **options,
                    )
        self.transducer = transducer
        return transducer

    def _read_together(
        self, terms: list[LatticeTerm], with_transducer: bool, options: dict
    ) -> tuple[Tensor | None, list[Tensor]]:
        """One pass, or two where KD reads the student at another frame rate."""
        lattice = self.outputs.lattice
        grid = grid_of(lattice, self.kd.symbols.blank)
        options = dict(options, topology=lattice.topology)
        if not terms or self.kd.strides.student == 1:
            return lattice_losses(
                lattice.logits, grid, terms, with_transducer=with_transducer, **options
            )
        transducer = None
        if with_transducer:
            transducer, _ = lattice_losses(lattice.logits, grid, (), **options)
        _, sums = lattice_losses(
            self._slow_logits,
            self.teacher_lattice.grid,
            terms,
            with_transducer=False,
            **options,
        )
        return transducer, sums

    def _term(self, loss: LossConf) -> LatticeTerm:
        is_slowed = self.kd.strides.student > 1
        ranges = None if is_slowed else self.outputs.lattice.ranges
        return lattice_term(loss, self.teacher_lattice, ranges)

    @cached_property
    def _slow_logits(self) -> Logits:
        """The student's logits at the common frame rate."""
        stride, how = self.kd.strides.student, self.kd.conf.rate
        logits, frames = self.outputs.lattice.logits, self.outputs.lattice.frames
        if stride == 1:
            return logits
        if isinstance(logits, FactoredLogits):
            encoder, _ = slow_down(logits.encoder, frames, stride, how)
            return dataclasses.replace(logits, encoder=encoder)
        return slow_down(logits, frames, stride, how)[0]

    @cached_property
    def teacher_lattice(self) -> LatticeTeacher:
        """The teachers on the student's labels, at the common frame rate."""
        lattice, blank = self.outputs.lattice, self.kd.symbols.blank
        labels, lengths = lattice.labels, lattice.label_lengths
        teacher = self.kd.teacher.lattice(self.slowed, labels, lengths)
        stride = self.kd.strides.student
        frames = (lattice.frames + stride - 1).div(stride, rounding_mode="floor")
        frames = torch.minimum(frames.to(self.teacher_frames), self.teacher_frames)
        grid = make_grid(self._slow_logits, labels, frames, lengths, blank)
        return LatticeTeacher(teacher, grid, blank)

    def _at_common_rate(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The student's frames, no more of them than the teachers have."""
        x, lengths = slow_down(x, lengths, self.kd.strides.student, self.kd.conf.rate)
        return x, torch.minimum(lengths.to(self.teacher_frames), self.teacher_frames)


def _sequence_kd(
    student: Tensor,
    teacher: Tensor,
    lengths: Tensor,
    loss: NodeLossConf,
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


def _cuda_autocast(device: torch.device) -> dict:
    """Arguments of torch.autocast for what holds now on CUDA; off elsewhere."""
    if device.type != "cuda":
        return {"enabled": False}
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4, which deprecates the other
        dtype = torch.get_autocast_dtype("cuda")
    else:
        dtype = torch.get_autocast_gpu_dtype()
    return {"enabled": torch.is_autocast_enabled(), "dtype": dtype}


def lattice_score(lattice: Lattice, blank: int) -> Tensor:
    """log P(labels) (B,) of a lattice."""
    return total_score(
        lattice.logits,
        lattice.labels,
        lattice.frames,
        lattice.label_lengths,
        blank=blank,
        ranges=lattice.ranges,
        topology=lattice.topology,
    )


def ctc_scores(frames: Frames, blank: int) -> Tensor:
    """log P(labels) (B,) by CTC; -inf where the labels need more frames."""
    log_probs = frames.logits.float().log_softmax(-1).transpose(0, 1)
    arguments = (log_probs, frames.targets, frames.lengths, frames.label_lengths, blank)
    with torch.no_grad():
        losses = torch.nn.functional.ctc_loss(*arguments, reduction="none")
    # The gradient of an infinite loss is NaN, also where nothing flows into it.
    finite = torch.nn.functional.ctc_loss(
        *arguments, reduction="none", zero_infinity=True
    )
    return torch.where(losses.isfinite(), -finite, -losses)


def token_scores(tokens: Tokens, padding: int) -> Tensor:
    """log P(labels, <eos>) (B,) by an attention decoder."""
    valid = tokens.targets != padding
    log_probs = tokens.logits.float().log_softmax(-1)
    ids = tokens.targets.masked_fill(~valid, 0).unsqueeze(-1)
    return log_probs.gather(-1, ids).squeeze(-1).masked_fill(~valid, 0).sum(1)


def _cut(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    frames = min(student.size(1), teacher.size(1))
    return student[:, :frames], teacher[:, :frames]


def stats_names(losses: Sequence[LossConf]) -> list[str]:
    """`loss_kd_<nodes>`, with their variant where several losses share the nodes."""
    nodes = [loss.nodes for loss in losses]
    names = [
        f"loss_kd_{loss.nodes}"
        + (f"_{loss.variant}" if nodes.count(loss.nodes) > 1 else "")
        for loss in losses
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{index}"
        for index, name in enumerate(names)
    ]
