"""Frame rates: student and teachers are compared at the slowest one's rate."""

from __future__ import annotations

import torch
from torch import Tensor


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
    slow_lengths = (lengths + stride - 1).div(stride, rounding_mode="floor")
    if how == "stride":
        return x[:, ::stride], slow_lengths
    windows = -(-x.size(1) // stride)
    valid = torch.arange(windows * stride, device=x.device) < lengths.unsqueeze(1)
    count = valid.view(-1, windows, stride).sum(-1).clamp(min=1)
    shape = (-1, windows * stride) + (1,) * (x.dim() - 2)
    padded = x.new_zeros(x.size(0), windows * stride, *x.shape[2:])
    padded = torch.cat([x, padded[:, x.size(1) :]], dim=1)
    kept = padded.masked_fill(~valid.view(shape), 0.0)
    pooled = kept.view(x.size(0), windows, stride, *x.shape[2:]).sum(2)
    return pooled / count.view(-1, windows, *(1,) * (x.dim() - 2)), slow_lengths
