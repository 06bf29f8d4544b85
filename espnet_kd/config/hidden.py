"""`kd_conf.hidden`: pairs of layers that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from espnet_kd.config.fields import Choice, Form, Integer, Section, option
from espnet_kd.config.schedules import NumberOrSchedule, Scheduled, section_at


def _module(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: {value!r} is not the name of a module")
    return value


MODULE = Form("name of a module", _module)


@dataclass(frozen=True)
class HiddenConf(Section):
    """One pair of layers whose outputs are compared frame by frame.

    Both are sub-modules of the encoders that give frames (B, T, D), after the
    subsampling, named as in `model.named_modules()`, for example `encoder.encoders.5`.
    Where the widths differ, a linear projection of the student's output is trained; it
    is not part of the saved student.
    """

    is_experimental = True

    student: str = option(MODULE, "Name of the student's layer.")
    teacher: str = option(MODULE, "Name of the teacher's layer.")
    loss: str = option(
        Choice(("mse", "cosine")),
        """`mse` (mean over frames and dimensions) or `cosine` (mean over frames of
        1 - cosine).""",
        "mse",
    )
    weight: Scheduled = option(
        NumberOrSchedule(minimum=0), "Factor in the training loss.", 1.0
    )
    teacher_index: int = option(
        Integer(0), "Index of the teacher in `teacher_config`, counted from 0.", 0
    )

    def at(self, updates: int) -> HiddenConf:
        """The same with the weight after `updates` updates."""
        return section_at(self, updates)
