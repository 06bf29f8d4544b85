"""The backends that sum and maximise over alignments: k2 and torch."""

import functools
from types import ModuleType

import torch
from torch import Tensor

from espnet_kd.lattice import torch_backend

BACKENDS = ("k2", "torch")
TOPOLOGIES = ("regular", "modified")


@functools.cache
def _import_k2() -> tuple[ModuleType | None, str]:
    """k2's backend, or None and the reason.

    pip installs k2 1.23.4 even where it cannot be loaded; only an import can tell.
    """
    try:
        from espnet_kd.lattice import k2_backend
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"
    return k2_backend, ""


def has_k2() -> bool:
    """True where k2 can be imported."""
    return _import_k2()[0] is not None


def choose_backend(backend: str | None, device: torch.device) -> ModuleType:
    """The module that computes: k2 where it is installed, else torch.

    Args:
        backend: "k2" or "torch" to force one, or None.
        device: where the tensors are; a k2 built without CUDA is not taken for them.

    Raises:
        ValueError: the name is unknown.
        ImportError: k2 is forced and cannot be imported.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend: {backend!r} is not one of {BACKENDS} or None")
    if backend == "torch":
        return torch_backend
    module, reason = _import_k2()
    if backend == "k2" and module is None:
        raise ImportError(
            f"backend: 'k2' was requested, but k2 cannot be imported ({reason}). "
            "Install the k2 that was built for this torch, or pass backend='torch'"
        )
    if module is None:
        return torch_backend
    if backend is None and device.type == "cuda" and not module.k2.with_cuda:
        return torch_backend
    return module


def check_alignable(frames: Tensor, symbols: Tensor, topology: str) -> None:
    """ValueError where the topology is unknown or leaves an utterance no alignment.

    Args:
        frames: (B,) T_b.
        symbols: (B,) U_b.
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology: {topology!r} is not one of {TOPOLOGIES}")
    if (frames < 1).any():
        raise ValueError("logit_lengths: an utterance of 0 frames has no alignment")
    if topology == "modified" and (frames < symbols).any():
        raise ValueError(
            "label_lengths: an utterance has more labels than frames, which the "
            "modified topology (one symbol per frame) cannot align; drop it, or use "
            "topology='regular'"
        )
