"""Frame rates: student and teachers are compared at the slowest one's rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rates:
    """How student and teachers come to the common frame rate.

    Attributes:
        student: frames of the student that make one frame at the common rate.
        teachers: the same for each teacher, by its name.
        how: "stride" or "pool", as `slow_down` takes it.
    """

    student: int = 1
    teachers: Mapping[str, int] = field(default_factory=dict)
    how: str = "stride"

    def slow_student(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The student's frames (B, T, ...) and their lengths at the common rate."""
        return slow_down(x, lengths, self.student, self.how)

    def slow_teacher(
        self, name: str, x: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A teacher's frames (B, T, ...) and their lengths at the common rate."""
        return slow_down(x, lengths, self.teachers[name], self.how)


def slow_down(
    x: Tensor, lengths: Tensor, stride: int, how: str
) -> tuple[Tensor, Tensor]:
    """Every stride-th frame of x (B, T, ...), or the mean of stride frames.

    Args:
        x: frames along dimension 1.
        lengths: frames of each utterance, (B,).
        stride: frames that become one.
        how: "stride" or "pool"; a last window with fewer frames is pooled over those.

    Returns:
        (B, ceil(T / stride), ...) and ceil(lengths / stride).
    """
    if stride == 1:
        return x, lengths
    shorter = slow_lengths(lengths, stride)
    if how == "stride":
        return x[:, ::stride], shorter
    windows = -(-x.size(1) // stride)
    valid = torch.arange(windows * stride, device=x.device) < lengths.unsqueeze(1)
    count = valid.view(-1, windows, stride).sum(-1).clamp(min=1)
    shape = (-1, windows * stride) + (1,) * (x.dim() - 2)
    padded = x.new_zeros(x.size(0), windows * stride, *x.shape[2:])
    padded = torch.cat([x, padded[:, x.size(1) :]], dim=1)
    kept = padded.masked_fill(~valid.view(shape), 0.0)
    pooled = kept.view(x.size(0), windows, stride, *x.shape[2:]).sum(2)
    return pooled / count.view(-1, windows, *(1,) * (x.dim() - 2)), shorter


def slow_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Frames (B,) that are left of lengths (B,): ceil(lengths / stride)."""
    return (lengths + stride - 1).div(stride, rounding_mode="floor")
