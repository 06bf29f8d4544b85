"""Weights and temperatures that change during training."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields
from typing import Any, Mapping, Union

from espnet_kd.config.checks import number
from espnet_kd.config.fields import Choice, Integer, Number, Section, option

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule(Section):
    """A number that goes from `start` to `end` with the updates of the student.

    An update is a step of the optimiser; batches that are accumulated for one update
    all use the same number.
    """

    is_experimental = True

    schedule: str = option(
        Choice(SHAPES),
        "`linear`, or `cosine` (half a period: slow, fast, slow); `constant` takes "
        "only `start`.",
    )
    start: float = option(Number(), "Value until `begin` updates are done.")
    end: float = option(Number(), "Value once `begin + steps` updates are done.")
    steps: int = option(Integer(1), "Updates from `start` to `end`; 1 is a step.")
    begin: int = option(Integer(0), "Updates before anything changes.", 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule == "constant":
            raise ValueError("schedule: constant takes `start` and nothing else")

    def at(self, updates: int) -> float:
        """The value after `updates` updates."""
        done = min(max((updates - self.begin) / self.steps, 0.0), 1.0)
        if self.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return (1 - done) * self.start + done * self.end


Scheduled = Union[float, Schedule]


@dataclass(frozen=True)
class NumberOrSchedule:
    """A number, or a mapping that describes a `Schedule`."""

    minimum: float | None = None
    above: float | None = None

    def parse(self, name: str, value: Any) -> Scheduled:
        return parse_scheduled(name, value, self.minimum, self.above)

    def __str__(self) -> str:
        return f"{Number(self.minimum, self.above)}, or a schedule"


def at(value: Scheduled, updates: int) -> float:
    """The value of a number or schedule after `updates` updates."""
    return value.at(updates) if isinstance(value, Schedule) else value


def section_at(conf: Any, updates: int) -> Any:
    """A section with numbers in place of its schedules, after `updates` updates."""
    now = {
        item.name: value.at(updates)
        for item in fields(conf)
        if isinstance(value := getattr(conf, item.name), Schedule)
    }
    return dataclasses.replace(conf, **now) if now else conf


def parse_scheduled(
    name: str, value: Any, minimum: float | None = None, above: float | None = None
) -> Scheduled:
    """A number unchanged, a mapping (`schedule: linear`, ...) as a `Schedule`.

    Raises:
        ValueError: neither of them, or a value out of range; the message names the
            field.
    """
    if isinstance(value, Mapping):
        value = _parse_schedule(name, value)
    if not isinstance(value, Schedule):
        number(name, value, minimum, above)
        return value
    number(f"{name}.start", value.start, minimum, above)
    number(f"{name}.end", value.end, minimum, above)
    return value


def _parse_schedule(name: str, values: Mapping[str, Any]) -> Scheduled:
    if values.get("schedule") == "constant" and set(values) == {"schedule", "start"}:
        return values["start"]
    known = [field.name for field in fields(Schedule)]
    for key in values:
        if key not in known:
            raise ValueError(f"{name}.{key}: no such field; known: {known}")
    missing = [key for key in known if key not in values and key != "begin"]
    if missing and values.get("schedule") != "constant":
        raise ValueError(
            f"{name}: a schedule needs {missing[0]}; give schedule ({SHAPES[1]} or "
            f"{SHAPES[2]}), start, end and steps, or a number"
        )
    try:
        return Schedule(**{"start": 0, "end": 0, "steps": 1, **values})
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error


def scheduled_values(named: Mapping[str, Any], updates: int) -> dict[str, float]:
    """The current values of everything that changes during training.

    Args:
        named: configurations by their names in the statistics.
        updates: number done so far.

    Returns:
        `kd_weight_<name>`, `kd_temperature_<name>`, ...; nothing for plain numbers.
    """
    return {
        "_".join(filter(None, ("kd", field.name, name))): value.at(updates)
        for name, conf in named.items()
        for field in fields(conf)
        if isinstance(value := getattr(conf, field.name), Schedule)
    }
