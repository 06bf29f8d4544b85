"""What is known of a teacher on one batch: the wall between teachers and KD losses.

    Source    lives as long as the training: an ensemble in memory, targets on disk
    Signals   a source's answers about one batch

The KD losses ask `Signals` and nothing else. An answer of None means "not known". All
frames that a `Signals` returns are at the common frame rate (`Batch.rates`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from espnet_kd.config.losses import LossConf
from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.sharing import Rows
from espnet_kd.lattice.masks import upcast
from espnet_kd.losses import OnlineSteps
from espnet_kd.losses.steps import StepTeacher
from espnet_kd.losses.teachers import Teacher
from espnet_kd.models.branches import (
    Encoded,
    encode_noise,
    frame_rate,
    nodes_of_model,
)
from espnet_kd.models.layers import Layer
from espnet_kd.teacher import options
from espnet_kd.teacher.ensemble import TeacherEnsemble

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SpecialTokens:
    """Indices of the special tokens, equal in student and teachers."""

    blank: int
    sos: int
    padding: int


@dataclass(frozen=True)
class Batch:
    """One batch, as a source sees it.

    Attributes:
        utterances: ids, one for each row; empty where the caller gave none.
        speech: waveforms (B, samples).
        speech_lengths: samples of each, (B,).
        rows: which of them share their audio.
        rates: how frames come to the common rate.
        symbols: special tokens.
        is_training: False in evaluation.
    """

    utterances: Sequence[str]
    speech: Tensor
    speech_lengths: Tensor
    rows: Rows
    rates: Rates
    symbols: SpecialTokens
    is_training: bool = True


class TeacherFacts(NamedTuple):
    """What is known of one teacher before any batch.

    Attributes:
        name: used in messages.
        nodes: where it can be compared, as `kd_conf` names it.
        token_list: its vocabulary; None where it is not known.
    """

    name: str
    nodes: frozenset[str]
    token_list: Sequence[str] | None


class KnownLattice(NamedTuple):
    """A teacher that knows of all nodes of the lattices, or of those in a band."""

    teacher: Teacher
    ranges: Tensor | None = None  # (B, T, S) rows of each frame; None: all


class KnownPath(NamedTuple):
    """One alignment of each utterance, and a teacher that knows of its nodes."""

    path: Tensor  # (B, N, 2) int64 (t, u)
    lengths: Tensor  # (B,) nodes
    teacher: Teacher


class Signals:
    """A source's answers about one batch; None where something is not known."""

    @property
    def lengths(self) -> Tensor | None:
        """Encoder frames (B,) at the common rate."""

    def frames(self) -> StepTeacher | None:
        """CTC posteriors of the encoder frames."""

    def tokens(self, targets: Tensor, lengths: Tensor) -> StepTeacher | None:
        """Posteriors of the attention decoder at the targets (B, L): y_1 .. y_U <eos>.

        Args:
            targets: anything in the padding.
            lengths: targets of each utterance, <eos> included, (B,).
        """

    def lattice(self, labels: Tensor, label_lengths: Tensor) -> KnownLattice | None:
        """Answers about the nodes of the transducer lattices of labels (B, U)."""

    def path(self, labels: Tensor, label_lengths: Tensor) -> KnownPath | None:
        """The alignment to compare; None: it is found in `lattice`."""

    def hidden(self, teacher: int, layer: str) -> Encoded | None:
        """Frames (M, T, D) of a layer that was asked for by `Source.watch`, and their
        lengths (M,), of the distinct rows."""


class Source:
    """Where signals come from.

    Attributes:
        teachers: facts of each teacher, known before any batch.
    """

    teachers: Sequence[TeacherFacts]

    def check(self, losses: Sequence[LossConf], rates: Rates) -> None:
        """Refuse losses that cannot be computed from this source, before training.

        Args:
            losses: at nodes that the teachers have; the other fields may not fit, for
                example a temperature other than that of stored targets.
            rates: of student and teachers.

        Raises:
            ValueError: names the field and the remedy.
        """

    def frame_rates(self, sampling_rate: int) -> dict[str, float]:
        """Encoder frames per second of each teacher, by its name."""
        raise NotImplementedError

    def signals(self, batch: Batch) -> Signals | None:
        """What is known of a batch; None: nothing, which only evaluation allows."""
        raise NotImplementedError

    def watch(self, teacher: int, layer: str, sampling_rate: int) -> int:
        """Keep a layer's frames of each batch from now on; return their width.

        Raises:
            ValueError: the source has no hidden layers, or not this one.
        """
        raise ValueError(f"{layer!r}: this source of signals has no hidden layers")

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the student to its device and type, as `nn.Module._apply` does."""


def known(answer: Answer | None, nodes: str) -> Answer:
    """An answer of `Signals` that must be known.

    Raises:
        ValueError: it is None; names the nodes.
    """
    if answer is None:
        raise ValueError(
            f"nodes: {nodes}: not known of the teacher on this batch, but "
            "Source.teachers lists it; correct the source, or leave this loss "
            "out of kd_conf"
        )
    return answer


# ------------------------------------------------------------- an ensemble in memory


class EnsembleSource(Source):
    """Teachers in memory, which encode every batch.

    They are held outside `nn.Module` registration: never in a student's state_dict,
    optimiser, DDP buckets or checkpoints.
    """

    def __init__(self, ensemble: TeacherEnsemble) -> None:
        self.ensemble = ensemble
        self.watched: dict[tuple[int, str], Layer] = {}
        self.teachers = [
            TeacherFacts(name, frozenset(nodes_of_model(model)), model.token_list)
            for name, model in ensemble.named()
        ]
        self.nodes = frozenset.intersection(*(each.nodes for each in self.teachers))

    def frame_rates(self, sampling_rate: int) -> dict[str, float]:
        return {
            name: frame_rate(model, sampling_rate)
            for name, model in self.ensemble.named()
        }

    def watch(self, teacher: int, layer: str, sampling_rate: int) -> int:
        model = self.ensemble.models[teacher]
        if (teacher, layer) not in self.watched:  # several pairs may share a layer
            self.watched[teacher, layer] = Layer(model, layer)
        encode_noise(model, sampling_rate)
        return self.watched[teacher, layer].width()

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.ensemble.apply(fn)

    def signals(self, batch: Batch) -> Signals:
        return EnsembleSignals(self, batch, autocast_on_cuda(batch.speech.device))


class EnsembleSignals(Signals):
    """What an ensemble predicts for one batch; computed on first use."""

    def __init__(self, source: EnsembleSource, batch: Batch, autocast: dict) -> None:
        self.source = source
        self.ensemble = source.ensemble
        self.batch = batch
        self.autocast = autocast
        self.taken: dict[tuple[int, str], Encoded] = {}

    @cached_property
    def _distinct(self) -> list[Encoded]:
        """Each teacher's encoder output and frames, of the distinct rows."""
        batch = self.batch
        distinct = batch.rows.take(batch.speech, batch.speech_lengths)
        # KD runs in full precision; the expensive encoder pass uses the student's
        # autocast.
        with torch.autocast(batch.speech.device.type, **self.autocast):
            return self.ensemble.encode(*distinct)

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The same of all rows."""
        encoded = [(upcast(x), lengths) for x, lengths in self._distinct]
        return self.batch.rows.expand(encoded)

    @cached_property
    def _slowed(self) -> list[Encoded]:
        """The same at the common frame rate."""
        return [
            self.batch.rates.slow_teacher(name, *encoded)
            for (name, _), encoded in zip(self.ensemble.named(), self.encoded)
        ]

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.stack([lengths for _, lengths in self._slowed]).amin(0)

    @property
    def lengths(self) -> Tensor:
        """Frames (B,) that all teachers have."""
        return self._lengths

    def frames(self) -> StepTeacher | None:
        return self._frames if "frames" in self.source.nodes else None

    @cached_property
    def _frames(self) -> StepTeacher:
        return EnsembleSteps(self.ensemble, self.ensemble.frames(self._slowed))

    def tokens(self, targets: Tensor, lengths: Tensor) -> StepTeacher | None:
        if "tokens" not in self.source.nodes:
            return None
        symbols = self.batch.symbols
        steps = torch.arange(targets.size(1), device=targets.device)
        padding = steps >= lengths.unsqueeze(1)
        labels_in = targets.masked_fill(padding, symbols.sos).roll(1, dims=1)
        labels_in[:, 0] = symbols.sos
        logits = self.ensemble.tokens(self.encoded, labels_in, lengths)
        return EnsembleSteps(self.ensemble, logits)

    def lattice(self, labels: Tensor, label_lengths: Tensor) -> KnownLattice | None:
        if "lattice" not in self.source.nodes:
            return None
        teacher = self.ensemble.lattice(self._slowed, labels, label_lengths)
        return KnownLattice(teacher)

    def hidden(self, teacher: int, layer: str) -> Encoded | None:
        _ = self._distinct  # the hooks keep what this pass outputs
        key = (teacher, layer)
        if key not in self.taken:
            name = self.source.teachers[teacher].name
            frames = self.source.watched[key].take()
            self.taken[key] = self.batch.rates.slow_teacher(name, *frames)
        return self.taken[key]


class EnsembleSteps:
    """The mean posterior of several teachers' logits, each (B, L, V)."""

    def __init__(self, ensemble: TeacherEnsemble, logits: Sequence[Tensor]) -> None:
        self.ensemble = ensemble
        self.logits = logits

    def log_probs(self, temperature: float) -> Tensor:
        """Of all classes, (B, L, V)."""
        return self._mean(temperature).log_probs(temperature)

    def topk(
        self, k: int, keep: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the k best classes and their ids, both (B, L, k)."""
        return self._mean(temperature).topk(k, keep, temperature)

    def _mean(self, temperature: float) -> OnlineSteps:
        return OnlineSteps(self.ensemble.mean(self.logits, temperature))


def autocast_on_cuda(device: torch.device) -> dict:
    """Arguments of torch.autocast for the current state on CUDA; off elsewhere."""
    if device.type != "cuda":
        return {"enabled": False}
    if hasattr(torch, "get_autocast_dtype"):  # since 2.4, which deprecates the other
        dtype = torch.get_autocast_dtype("cuda")
    else:
        dtype = torch.get_autocast_gpu_dtype()
    return {"enabled": torch.is_autocast_enabled(), "dtype": dtype}


# -------------------------------------------------------------------------- options


def add_source_options(group: argparse._ArgumentGroup) -> None:
    """Options that name where signals come from."""
    options.add_teacher_options(group)


def check_source_options(args: argparse.Namespace, asking: Sequence[str]) -> None:
    """Refuse options that do not fit each other, or name no source.

    Args:
        asking: fields of `kd_conf` that need a teacher.

    Raises:
        ValueError: names the option and the remedy.
    """
    if asking and not args.teacher_config:
        raise ValueError(
            f"teacher_config: kd_conf has {asking[0]}, but no teacher is given; pass "
            f"--teacher_config and --teacher_model_file, or drop kd_conf.{asking[0]}"
        )
    options.check_teacher_options(args)


def source_of(args: argparse.Namespace) -> Source:
    """The source that the options of a training name.

    Raises:
        ValueError: an option or a teacher does not fit.
        OSError: a file cannot be read.
    """
    return EnsembleSource(options.load_teachers(args))
