"""Checks of single values of `kd_conf`; a message names the field."""

from __future__ import annotations

import math
from typing import Any, Sequence


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is none of {list(allowed)}")


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
