"""Size of a model, read from its checkpoint alone."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from espnet_kd.models.loading import read_weights
from espnet_kd.report.costs import ModelSize

# Tensors that ESPnet's modules store besides parameters: mel filters, statistics of
# GlobalMVN and of BatchNorm. They are on disk, but not trained.
_BUFFERS = re.compile(
    r"(^|\.)(running_mean|running_var|num_batches_tracked|melmat)$"
    r"|^normalize\.(mean|std)$"
)


def size_of(tensors: dict[str, torch.Tensor]) -> ModelSize:
    """Count the parameters and the stored bytes of a checkpoint.

    Args:
        tensors: as returned by `read_tensors`. A tensor with two names counts once.
    """
    tensors = distinct(tensors)
    return ModelSize(
        parameters=sum(t.numel() for name, t in tensors.items() if not is_buffer(name)),
        bytes=stored_bytes(tensors),
    )


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The floating point tensors of a checkpoint.

    Args:
        path: a model's ``state_dict`` as written by ESPnet (``valid.loss.ave.pth``,
            ``12epoch.pth``).

    Raises:
        ValueError: the file is something else, e.g. a trainer's ``checkpoint.pth``.
    """
    state = read_weights(path)
    tensors = {
        name: tensor
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.numel()
    }
    if not tensors:
        raise ValueError(
            f"{path}: has no floating point tensors; give a model's state_dict"
        )
    return tensors


def distinct(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once, under the first of its names."""
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        first.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: tensors[name] for name in first.values()}


def stored_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Bytes of the values of all distinct tensors."""
    return sum(t.numel() * t.element_size() for t in distinct(tensors).values())


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is not trained."""
    return _BUFFERS.search(name) is not None
