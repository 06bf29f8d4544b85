"""Checks of single values of `kd_conf`; a message names the field."""

from __future__ import annotations

import math
import re
from typing import Any, Sequence


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {list(allowed)}")


def number(
    name: str, value: Any, minimum: float | None = None, above: float | None = None
) -> None:
    """ValueError unless `value` is a finite number >= minimum, > above."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: {value!r} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not finite")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: {value} must be at least {minimum}")
    if above is not None and value <= above:
        raise ValueError(f"{name}: {value} must be above {above}")


def integer(name: str, value: Any, minimum: int | None = None) -> None:
    """ValueError unless `value` is a whole number >= minimum."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: {value!r} is not a whole number")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: {value} must be at least {minimum}")


def block_sides(pattern: Any) -> tuple[int, int] | None:
    """Outputs and inputs of the blocks of a pruning pattern, for example `1x16`;
    `unstructured` is 1 x 1, `2:4` has no blocks. ValueError for anything else."""
    if pattern == "2:4":
        return None
    if pattern == "unstructured":
        return 1, 1
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(pattern))
    if sides is None:
        raise ValueError(
            f"pattern: {pattern!r} is not one of unstructured, 2:4 (in quotes) or a "
            "block of outputs x inputs such as 1x16"
        )
    return int(sides[1]), int(sides[2])
