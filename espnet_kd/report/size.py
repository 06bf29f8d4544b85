"""How large a model is, read from its checkpoint alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

# What ESPnet's modules store beside their parameters: the mel filters, the statistics
# of GlobalMVN and of BatchNorm. They are kept on disk, but nothing learns them.
_BUFFERS = re.compile(
    r"(^|\.)(running_mean|running_var|num_batches_tracked|melmat)$"
    r"|^normalize\.(mean|std)$"
)


@dataclass(frozen=True)
class ModelSize:
    """Attributes: parameters (trainable values), bytes (all floating point tensors)."""

    parameters: int
    bytes: int


def model_size(path: str | Path) -> ModelSize:
    """Count the parameters and the stored bytes of a checkpoint.

    Args:
        path: a model's ``state_dict`` as ESPnet writes it (``valid.loss.ave.pth``,
            ``12epoch.pth``). Two names of one tensor are counted once.

    Raises:
        ValueError: the file holds something else, say a trainer's ``checkpoint.pth``.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _not_a_model(path) from error
    if not isinstance(state, dict):
        raise _not_a_model(path)
    tensors = {
        (t.data_ptr(), t.shape): (name, t)
        for name, t in state.items()
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel()
    }.values()
    if not tensors:
        raise _not_a_model(path)
    return ModelSize(
        parameters=sum(t.numel() for name, t in tensors if not _BUFFERS.search(name)),
        bytes=sum(t.numel() * t.element_size() for _, t in tensors),
    )


def _not_a_model(path: str | Path) -> ValueError:
    return ValueError(
        f"{path}: not a model's state_dict. Give the file that is decoded with, "
        "such as valid.loss.ave.pth or 12epoch.pth, not the trainer's checkpoint.pth."
    )
