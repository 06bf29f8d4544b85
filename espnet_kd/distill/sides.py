"""Both sides of one batch, as passed to the loss of a kind of nodes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espnet_kd.distill.frame_rates import Rates
from espnet_kd.distill.lattice import LatticeReading
from espnet_kd.distill.outputs import Outputs
from espnet_kd.distill.signals import Signals, SpecialTokens, known


@dataclass(frozen=True)
class Sides:
    """The student's outputs and what is known of the teacher.

    Attributes:
        student: outputs of the forward pass.
        teacher: answers about the same batch.
        reading: the one pass over the student's transducer lattices.
        rates: how frames come to the common rate.
        symbols: special tokens.
        cache: what several losses of the batch share.
        warned: messages that this training has had.
    """

    student: Outputs
    teacher: Signals
    reading: LatticeReading
    rates: Rates
    symbols: SpecialTokens
    cache: dict[str, Any] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)

    def warn_once(self, message: str) -> None:
        """Log a warning that this training has not had."""
        if message not in self.warned:
            self.warned.add(message)
            logging.warning(message)

    def slow_student(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The student's frames at the common rate, at most as many as the teacher's."""
        x, lengths = self.rates.slow_student(x, lengths)
        of_teacher = known(self.teacher.lengths, "lengths")
        return x, torch.minimum(lengths.to(of_teacher), of_teacher)
