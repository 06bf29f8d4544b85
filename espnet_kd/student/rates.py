"""Frame rates: student and teachers are compared at the slowest one's rate."""

from __future__ import annotations

import torch
from torch import Tensor


def strides_to_common_rate(rates: dict[str, float]) -> dict[str, int]:
    """How many frames of each model make one frame of the slowest model.

    Args:
        rates: encoder frames per second, by a name for messages.

    Raises:
        ValueError: a rate is not an integer multiple of the slowest one.
    """
    slowest = min(rates, key=rates.get)
    strides = {}
    for name, rate in rates.items():
        ratio = rate / rates[slowest]
        strides[name] = round(ratio)
        # Each rate was counted over 10 s, so it may be one frame in 10 s off.
        tolerance = ratio * (0.1 / rate + 0.1 / rates[slowest])
        if abs(ratio - strides[name]) > tolerance:
            raise ValueError(
                f"frame rates: {name} makes {rate:.2f} encoder frames per second and "
                f"{slowest} {rates[slowest]:.2f}, a ratio of {ratio:.3f}; only "
                "integer ratios can be matched. Change the student's subsampling or "
                "hop length, or use sequence-level KD (no frame-level losses)"
            )
    return strides


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
