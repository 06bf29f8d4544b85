"""KD on the transducer lattice: all of its losses from one pass over the student's.

    frame t+1   o---o---o     lattice   every node of the lattice
                |   |   |     band      `band.py`
    frame t     o---o---o     path      `path.py`
                labels u

A term is one KD loss on some nodes. The terms of a batch and the student's own
transducer loss read each node of the student's joint network once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from espnet_kd.config.losses import BandConf, LatticeConf, TransducerLossConf
from espnet_kd.distill.frame_rates import Rates, slow_lengths
from espnet_kd.distill.lattice_teacher import LatticeTeacher
from espnet_kd.distill.node_kinds import TERMS, classes_of, term_of
from espnet_kd.distill.outputs import Lattice
from espnet_kd.distill.signals import Signals, known
from espnet_kd.lattice import total_score
from espnet_kd.lattice.logits import FactoredLogits, Logits
from espnet_kd.lattice.nodes import Layout, make_layout
from espnet_kd.losses import LatticeTerm, lattice_losses, windowed_losses
from espnet_kd.losses.nodes import later
from espnet_kd.losses.teachers import Teacher


@term_of("lattice")
def lattice_term(
    loss: LatticeConf, teacher: LatticeTeacher, ranges: Tensor | None
) -> LatticeTerm:
    """A loss on every node that both sides have."""
    return term_at(loss, teacher, teacher.layout.nodes, teacher.layout.nodes)


def term_at(
    loss: LatticeConf | BandConf,
    teacher: LatticeTeacher,
    own: Tensor,
    of_teacher: Tensor,
) -> LatticeTerm:
    """A loss at the student's nodes whose counterparts are among the teacher's.

    Args:
        loss: at `lattice` or `band`, with numbers for schedules.
        teacher: on the labels of the batch.
        own: (B, T, U+1) bool, nodes of the student.
        of_teacher: (B, T, U+1) bool; the student's node is `loss.shift` frames later.
    """
    frames, weights = own.size(1), None
    if loss.weighting == "occupancy":
        weights = later(teacher.occupancies.sum(-1), loss.shift, frames)
    nodes = own & later(of_teacher, loss.shift, frames)
    return make_term(loss, teacher, nodes, weights)


def make_term(
    loss: TransducerLossConf, teacher: Teacher, nodes: Tensor, weights: Tensor | None
) -> LatticeTerm:
    """A loss of `kd_conf` on nodes (B, T, U+1), each with a weight or none."""
    return LatticeTerm(
        teacher=teacher,
        nodes=nodes,
        classes=classes_of(loss),
        divergence=loss.divergence,
        temperature=loss.temperature,
        weights=weights,
        shift=loss.shift,
    )


class LatticeReading:
    """The losses on the transducer lattices of one batch.

    Args:
        losses: those of `kd_conf` on lattices, with numbers for schedules.
        signals: what is known of the teacher; None without KD.
        rates: how frames come to the common rate.
        blank: class of blank.
        tolerance: `kd_conf.tolerance`.
    """

    def __init__(
        self,
        losses: Sequence[TransducerLossConf] = (),
        signals: Signals | None = None,
        rates: Rates | None = None,
        blank: int = 0,
        tolerance: float = 0.0,
    ) -> None:
        self.losses = losses
        self.signals = signals
        self.rates = rates or Rates()
        self.options = dict(blank=blank, tolerance=tolerance)
        self.transducer: Tensor | None = None  # (B,), once it was read
        self.results: dict[TransducerLossConf, tuple[Tensor, Tensor]] | None = None
        self.common: CommonLattice | None = None

    def transducer_losses(self, lattice: Lattice) -> Tensor:
        """-log P(labels) (B,) of the student, with its KD losses from the same pass."""
        self._read(lattice, with_transducer=True)
        return self.transducer

    def sums(self, loss: TransducerLossConf, lattice: Lattice) -> tuple[Tensor, Tensor]:
        """Sums (B,) over the nodes of a loss, and their number."""
        if self.results is None:
            self._read(lattice, with_transducer=False)
        return self.results[loss]

    def score(self, lattice: Lattice) -> Tensor:
        """log P(labels) (B,) of the student."""
        if self.transducer is None:
            self.transducer = -total_score(
                lattice.logits,
                lattice.labels,
                lattice.frames,
                lattice.label_lengths,
                blank=self.options["blank"],
                ranges=lattice.ranges,
                topology=lattice.topology,
            )
        return -self.transducer

    def teacher_score(self, lattice: Lattice) -> Tensor | None:
        """log P(labels) (B,) of the teacher; None where its lattice is not known."""
        teacher = self._common(lattice).teacher
        return None if teacher is None else teacher.total_score()

    def _common(self, lattice: Lattice) -> CommonLattice:
        if self.common is None:
            blank = self.options["blank"]
            self.common = CommonLattice(lattice, self.signals, self.rates, blank)
        return self.common

    def _read(self, lattice: Lattice, with_transducer: bool) -> None:
        """All losses in one pass, or in two where KD reads at another frame rate."""
        with torch.autocast(lattice.labels.device.type, enabled=False):
            terms = {loss: self._term(loss, lattice) for loss in self.losses}
            together = {x: term for x, term in terms.items() if x.window == 1}
            apart = bool(together) and self.rates.student > 1
            options = dict(self.options, topology=lattice.topology)
            sums: list[Tensor] = []
            if with_transducer or (together and not apart):
                transducer, sums = lattice_losses(
                    lattice.logits,
                    layout_of(lattice, self.options["blank"]),
                    [] if apart else list(together.values()),
                    with_transducer=with_transducer,
                    **options,
                )
                if with_transducer:
                    self.transducer = transducer
            if apart:
                _, sums = lattice_losses(
                    self.common.logits,
                    self.common.layout,
                    list(together.values()),
                    with_transducer=False,
                    **options,
                )
            self.results = {
                loss: (each, term.nodes.sum())
                for (loss, term), each in zip(together.items(), sums)
            }
            for loss, term in terms.items():
                if loss.window > 1:
                    self.results[loss] = self._windowed(loss, term)

    def _term(self, loss: TransducerLossConf, lattice: Lattice) -> LatticeTerm:
        teacher = self._common(lattice).known_teacher(loss.nodes)
        ranges = lattice.ranges if self.rates.student == 1 else None
        return TERMS[loss.nodes](loss, teacher, ranges)

    def _windowed(
        self, loss: TransducerLossConf, term: LatticeTerm
    ) -> tuple[Tensor, Tensor]:
        common = self.common
        return windowed_losses(
            common.logits, common.layout, term, loss.window, **self.options
        )


class CommonLattice:
    """A batch's lattices at the frame rate, and with the frames, of both sides.

    Attributes:
        logits: of the student, (B, T, U+1, V).
        layout: which nodes there are.
        teacher: None where neither the lattice nor a path is known of it.
    """

    def __init__(
        self, lattice: Lattice, signals: Signals, rates: Rates, blank: int
    ) -> None:
        labels = (lattice.labels, lattice.label_lengths)
        answer, path = signals.lattice(*labels), signals.path(*labels)
        self.teacher = None
        if answer is None and path is None:
            return
        self.logits = _slowed(lattice, rates)
        of_teacher = known(signals.lengths, "lengths")
        frames = slow_lengths(lattice.frames, rates.student)
        frames = torch.minimum(frames.to(of_teacher), of_teacher)
        self.layout = make_layout(
            self.logits, lattice.labels, frames, lattice.label_lengths, blank
        )
        self.teacher = LatticeTeacher(answer, self.layout, blank, path)

    def known_teacher(self, nodes: str) -> LatticeTeacher:
        """The teacher, which must be known.

        Raises:
            ValueError: it is not; names the nodes.
        """
        return known(self.teacher, nodes)


def _slowed(lattice: Lattice, rates: Rates) -> Logits:
    """The student's logits at the common frame rate."""
    logits, frames = lattice.logits, lattice.frames
    if rates.student == 1:
        return logits
    if isinstance(logits, FactoredLogits):
        encoder, _ = rates.slow_student(logits.encoder, frames)
        return dataclasses.replace(logits, encoder=encoder)
    return rates.slow_student(logits, frames)[0]


def layout_of(lattice: Lattice, blank: int) -> Layout:
    """The nodes that the transducer loss of a lattice reads."""
    lengths = (lattice.frames, lattice.label_lengths)
    layout = make_layout(lattice.logits, lattice.labels, *lengths, blank)
    return layout.within(lattice.ranges)
