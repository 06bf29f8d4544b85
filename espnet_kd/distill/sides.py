"""Both sides of one batch, as passed to the loss of a kind of nodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.lattice import LatticeReading
from espnet_kd.distill.outputs import Outputs
from espnet_kd.distill.signals import Signals, SpecialTokens


@dataclass(frozen=True)
class Sides:
    """The student's outputs and what is known of the teacher.

    Attributes:
        student: outputs of the forward pass.
        teacher: answers about the same batch.
        lattice: the one pass over the student's transducer lattices.
        rates: how frames come to the common rate.
        symbols: special tokens.
    """

    student: Outputs
    teacher: Signals
    lattice: LatticeReading
    rates: Rates
    symbols: SpecialTokens

    def slow_student(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The student's frames at the common rate, at most as many as the teacher's."""
        x, lengths = self.rates.slow_student(x, lengths)
        known = self.teacher.lengths
        return x, torch.minimum(lengths.to(known), known)
