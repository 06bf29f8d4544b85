"""What CTC frames and attention tokens share: an utterance is a sequence of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from espnet_kd.config.losses import NodeLossConf
from espnet_kd.distill.node_kinds import classes_of
from espnet_kd.losses import steps_kd
from espnet_kd.losses.steps import StepTeacher


def kd_of_steps(
    loss: NodeLossConf,
    student: Tensor,
    teacher: StepTeacher,
    lengths: Tensor,
    keep: Sequence[int] = (),
) -> Tensor:
    """Sums (B,) of a loss of `kd_conf` over steps.

    Args:
        loss: with numbers for schedules.
        student: (B, L, V) logits.
        teacher: of as many steps, or a few more or fewer.
        lengths: (B,) steps that both sides have.
        keep: classes that are always among the k best.
    """
    longest = max(1, int(lengths.max()))
    return steps_kd(
        student[:, :longest],
        FirstSteps(teacher, longest),
        lengths,
        classes=classes_of(loss),
        divergence=loss.divergence,
        temperature=loss.temperature,
        keep=keep,
    )


@dataclass(frozen=True)
class FirstSteps:
    """The first steps of a teacher whose padding differs from the student's."""

    teacher: StepTeacher
    longest: int

    def log_probs(self, temperature: float) -> Tensor:
        return self.teacher.log_probs(temperature)[:, : self.longest]

    def topk(
        self, k: int, keep: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        values, ids = self.teacher.topk(k, keep, temperature)
        return values[:, : self.longest], ids[:, : self.longest]
