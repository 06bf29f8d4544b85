"""Compressed formats of sparse weights: compressed sparse rows (CSR) and 2:4.

A compressed file is plain data that `torch.load(path, weights_only=True)` reads:

    {"format": "csr" or "2:4", "tensors": {name: Tensor, or a mapping of its parts}}

where a mapping is a compressed weight. Weights are viewed as rows (out, in), those of a
convolution as (out, in x kernel).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Union

import torch
from torch import Tensor

from espnet_kd.compress.sparsity import TwoOfFour
from espnet_kd.data.files import write_whole

State = dict[str, Tensor]
Parts = dict[str, Union[Tensor, list[int]]]


def compress(state: Mapping[str, Tensor], weights: Collection[str], form: str) -> dict:
    """A model's tensors in `form`, "csr" or "2:4"; unsuitable weights stay dense.

    A tensor with two names is stored once.

    Args:
        state: a model's state_dict.
        weights: names of the weights to compress, see
            `espnet_kd.compress.sparsity.prunable_weights`.

    Raises:
        ValueError: the form does not suit any of the weights.
    """
    suits, pack, _ = _FORMS[form]
    # A tensor shared by two names is compressed if either of them is listed.
    places = {_place(state[name]) for name in weights if suits(state[name])}
    if not places:
        raise ValueError(
            f"{form}: suits none of {len(weights)} weights; {_REASONS[form]}"
        )
    packed = {}
    for value in state.values():
        if _place(value) in places and _place(value) not in packed:
            packed[_place(value)] = pack(value)
    tensors = {name: packed.get(_place(v), v) for name, v in state.items()}
    return {"format": form, "tensors": tensors}


def save_compressed(
    path: str | Path, state: Mapping[str, Tensor], weights: Collection[str], form: str
) -> None:
    """Write `compress(state, weights, form)`.

    Raises:
        ValueError: the form does not suit any of the weights.
    """
    content = compress(state, weights, form)
    write_whole(path, lambda part: torch.save(content, part))


def read_compressed(path: str | Path) -> dict:
    """The content of a compressed file, as described at the head of this module.

    Raises:
        ValueError: the file is not a compressed model.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not (isinstance(content, dict) and content.get("format") in _FORMS):
        raise ValueError(
            f"{path}: not a compressed model; give a .csr.pth or .2to4.pth file that "
            "espnet_kd.bin.export wrote"
        )
    return content


def load_compressed(path: str | Path) -> State:
    """The dense state_dict of a compressed file.

    It is bitwise equal to the original, except that minus zero becomes 0.

    Raises:
        ValueError: the file is not a compressed model.
    """
    content = read_compressed(path)
    unpack = _FORMS[content["format"]][2]
    return {
        name: value if isinstance(value, Tensor) else unpack(value)
        for name, value in content["tensors"].items()
    }


def compressed_names(path: str | Path) -> list[str]:
    """Names of the weights that are compressed in a file."""
    tensors = read_compressed(path)["tensors"]
    return [name for name, value in tensors.items() if not isinstance(value, Tensor)]


def _place(tensor: Tensor) -> tuple:
    if not tensor.numel():  # all empty tensors have one address
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


# ------------------------------------------------------------------------------- CSR


def csr_is_smaller(weight: Tensor) -> bool:
    """Whether values, int32 columns and row pointers take fewer bytes than `weight`."""
    if weight.dim() < 2:
        return False
    count = int(weight.count_nonzero())
    size = count * (weight.element_size() + 4) + 4 * (len(weight) + 1)
    return size < weight.numel() * weight.element_size()


def pack_csr(weight: Tensor) -> Parts:
    """Parts of a weight (out, ...): `crow` (out + 1), `col` (N), both int32, `values`
    (N), row by row, and `shape`."""
    rows = weight.detach().flatten(1)
    kept = rows != 0
    crow = torch.zeros(len(rows) + 1, dtype=torch.int32)
    crow[1:] = kept.sum(1).cumsum(0)
    return {
        "crow": crow,
        "col": kept.nonzero()[:, 1].int(),
        "values": rows[kept],
        "shape": list(weight.shape),
    }


def unpack_csr(parts: Parts) -> Tensor:
    """The dense weight."""
    counts = parts["crow"].long().diff()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    dense = parts["values"].new_zeros(len(counts), math.prod(parts["shape"][1:]))
    dense[row, parts["col"].long()] = parts["values"]
    return dense.view(parts["shape"])


# ------------------------------------------------------------------------------- 2:4


def obeys_2_to_4(weight: Tensor) -> bool:
    """Whether each four neighbours in a row (out, in x kernel) have two zeros."""
    if not TwoOfFour().takes(weight.shape):
        return False
    return bool((weight.reshape(-1, 4) != 0).sum(1).le(2).all())


def pack_2_to_4(weight: Tensor) -> Parts:
    """Parts of a weight (out, ...) that obeys 2:4.

    `values` (out, in / 2); `positions`, uint8, half a byte per group of four: the index
    of its first value + 4 x that of its second; the low half comes first.
    """
    groups = weight.detach().reshape(-1, 4)
    zeros_last = (groups == 0).byte().sort(dim=1, stable=True).indices
    places = zeros_last[:, :2].sort(1).values
    halves = (places[:, 0] + 4 * places[:, 1]).byte()
    halves = torch.nn.functional.pad(halves, (0, len(halves) % 2)).view(-1, 2)
    return {
        "values": groups.gather(1, places).view(len(weight), -1),
        "positions": halves[:, 0] + 16 * halves[:, 1],
        "shape": list(weight.shape),
    }


def unpack_2_to_4(parts: Parts) -> Tensor:
    """The dense weight."""
    values = parts["values"].reshape(-1, 2)
    positions = parts["positions"].long()
    halves = torch.stack((positions % 16, positions // 16), 1).ravel()[: len(values)]
    places = torch.stack((halves % 4, halves // 4), 1)
    groups = values.new_zeros(len(values), 4).scatter_(1, places, values)
    return groups.view(parts["shape"])


_FORMS: dict[str, tuple[Callable, Callable, Callable]] = {
    "csr": (csr_is_smaller, pack_csr, unpack_csr),
    "2:4": (obeys_2_to_4, pack_2_to_4, unpack_2_to_4),
}
_REASONS = {
    "csr": "more than half of the values must be zero to take less space",
    "2:4": "two of each four neighbours must be zero",
}
