"""Checkpoints and what is in them, compared to the bit."""

from __future__ import annotations

import torch


def same(one, other, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for n, (value, again) in enumerate(zip(one, other)):
            same(value, again, f"{where}[{n}]")
    else:
        assert one == other, where
