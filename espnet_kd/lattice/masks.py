"""Lengths, masks and precision of batches; log(0)."""

import torch
from torch import Tensor

# In place of log(0), where -inf would turn into NaN (inf - inf, 0 * inf).
LOG_ZERO = -1e30


def upcast(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32.

    No operation of this package is on autocast's list of lowered ones, so that this
    cast is all that keeps a loss in full precision under autocast.
    """
    return x if x.dtype == torch.float64 else x.float()


def check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError that names both arguments and both shapes where they differ."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name}: shape {tuple(x.shape)} differs from the shape "
            f"{tuple(other.shape)} of {other_name}"
        )


def check_lengths(name: str, lengths: Tensor, batch: int, longest: int) -> Tensor:
    """Lengths as int64, refused unless integers of shape (B,) in 0..longest."""
    if lengths.dtype.is_floating_point or lengths.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(
            f"{name}: shape {tuple(lengths.shape)}, expected ({batch},), "
            "one length per utterance"
        )
    if batch:
        low, high = (int(x) for x in torch.stack(torch.aminmax(lengths)))
        if low < 0 or high > longest:
            raise ValueError(
                f"{name}: values {low}..{high} do not fit a tensor with {longest} steps"
            )
    return lengths.long()


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """(B,) -> (B, longest) bool, true at the first ``lengths[b]`` positions."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(-1)
