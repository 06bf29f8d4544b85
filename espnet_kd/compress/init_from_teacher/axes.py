"""Dimensions of tensors as products of factors, and how a larger one is cut.

The output of an attention's query layer is heads x units of a head, that of an LSTM's
weights gates x units, the input of a merging layer two branches end to end. Leading
entries of such a dimension would mix them; here each factor is cut by itself.
"""

from __future__ import annotations

import math
from typing import Iterator, NamedTuple, Tuple

import torch
from torch import Tensor


class Factor(NamedTuple):
    """One factor of a dimension; `fixed` names what may not be cut, else a width."""

    size: int
    fixed: str = ""


Axis = Tuple[Tuple[Factor, ...], ...]  # parts end to end, each a product of factors
Axes = Tuple[Axis, ...]  # of a tensor


def axis(*factors: int | Factor) -> Axis:
    """A dimension that is a product of factors, from the outermost one."""
    return (tuple(f if isinstance(f, Factor) else Factor(f) for f in factors),)


def axis_size(dimension: Axis) -> int:
    """Entries of a dimension."""
    return sum(math.prod(factor.size for factor in part) for part in dimension)


def misfit(student: Axes, teacher: Axes) -> str:
    """Why a tensor cannot be cut out of the teacher's and the remedy, else ""."""
    if len(student) != len(teacher) or not all(map(_same_parts, student, teacher)):
        return (
            "are made of different parts; configure the student's as the teacher's, "
            "with the first layer in its place"
        )
    for dim, ours, theirs in _factors(student, teacher):
        if ours.fixed and ours.size != theirs.size:
            return (
                f"differ in dimension {dim}: {ours.fixed} {ours.size} and "
                f"{theirs.size}; give the student the teacher's"
            )
        if ours.size > theirs.size:
            return (
                f"differ in dimension {dim}: {ours.size} is wider than {theirs.size}; "
                "the student can only be narrower, with no more heads and no more "
                "units in each"
            )
    return ""


def cut(value: Tensor, student: Axes, teacher: Axes) -> Tensor:
    """The student's part of a teacher's tensor, without `misfit` between them."""
    for dim, (ours, theirs) in enumerate(zip(student, teacher)):
        if ours != theirs:
            kept = _kept_entries(ours, theirs).to(value.device)
            value = value.index_select(dim, kept)
    return value


def sizes_cut(student: Axes, teacher: Axes) -> set[tuple[int, int]]:
    """Pairs (teacher's size, student's size) of the factors that are cut."""
    pairs = {(t.size, s.size) for _, s, t in _factors(student, teacher)}
    return {pair for pair in pairs if pair[0] != pair[1]}


def _factors(student: Axes, teacher: Axes) -> Iterator[tuple[int, Factor, Factor]]:
    for dim, (ours, theirs) in enumerate(zip(student, teacher)):
        for part, other in zip(ours, theirs):
            for pair in zip(part, other):
                yield (dim, *pair)


def _same_parts(student: Axis, teacher: Axis) -> bool:
    """Whether two dimensions are made of the same factors, of whatever size."""
    return [[f.fixed for f in part] for part in student] == [
        [f.fixed for f in part] for part in teacher
    ]


def _kept_entries(student: Axis, teacher: Axis) -> Tensor:
    """Indices of the teacher's entries that the student's dimension holds.

    Both have the same structure, and no factor of the student is the larger one.
    """
    kept, start = [], 0
    for ours, theirs in zip(student, teacher):
        shape = [factor.size for factor in theirs]
        entries = torch.arange(math.prod(shape)).view(shape)
        leading = entries[tuple(slice(factor.size) for factor in ours)]
        kept.append(leading.flatten() + start)
        start += math.prod(shape)
    return torch.cat(kept)
