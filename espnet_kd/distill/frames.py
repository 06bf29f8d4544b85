"""KD on CTC frames."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.config.losses import FramesConf
from espnet_kd.distill.node_kinds import loss_of
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import known
from espnet_kd.distill.steps import kd_of_steps


@loss_of("frames")
def frames_kd(loss: FramesConf, sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums (B,) over the frames that both sides have, and their number."""
    frames = sides.student.frames
    student, lengths = sides.slow_student(frames.logits, frames.lengths)
    teacher = known(sides.teacher.frames(), "frames")
    keep = (sides.symbols.blank,)
    return kd_of_steps(loss, student, teacher, lengths, keep), lengths.sum()
