"""Fields of `kd_conf`: type, default and help text of each, in one place.

A field is defined once, by `option`. Its check (`Section`), the `--help` of training
and docs/kd_conf.md (`espnet_kd.config.reference`) are derived from that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, Protocol

from espnet_kd.config.checks import integer, number, one_of


class Kind(Protocol):
    """The type of a field; its `str` is for readers."""

    def parse(self, name: str, value: Any) -> Any:
        """The value as stored. ValueError, beginning with `name`, for a value that is
        not allowed."""


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def parse(self, name: str, value: Any) -> str:
        one_of(name, value, self.names)
        return value

    def __str__(self) -> str:
        return listed(self.names)


@dataclass(frozen=True)
class Number:
    """A finite number."""

    minimum: float | None = None
    above: float | None = None

    def parse(self, name: str, value: Any) -> float:
        number(name, value, self.minimum, self.above)
        return value

    def __str__(self) -> str:
        if self.above is not None:
            return f"number > {self.above}"
        return "number" + ("" if self.minimum is None else f" >= {self.minimum}")


@dataclass(frozen=True)
class Integer:
    """A whole number."""

    minimum: int

    def parse(self, name: str, value: Any) -> int:
        integer(name, value, self.minimum)
        return value

    def __str__(self) -> str:
        return f"whole number >= {self.minimum}"


@dataclass(frozen=True)
class Switch:
    """true, false, or null (its meaning is in the help text)."""

    def parse(self, name: str, value: Any) -> bool | None:
        if not isinstance(value, (bool, type(None))):
            raise ValueError(f"{name}: {value!r} is not true or false")
        return value

    def __str__(self) -> str:
        return "true, false or null"


@dataclass(frozen=True)
class Form:
    """Anything that a function accepts, described in words."""

    words: str
    check: Callable[[str, Any], Any]

    def parse(self, name: str, value: Any) -> Any:
        return self.check(name, value)

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Option:
    """Type and description of a field.

    Attributes:
        kind: its type.
        help: one or a few sentences, in Markdown.
        experimental: True if no preset, recipe or row of results uses it; or those of
            its choices that none uses (tests/config/test_experimental.py).
    """

    kind: Kind
    help: str
    experimental: bool | tuple[str, ...] = False


def option(
    kind: Kind,
    help: str,
    default: Any = MISSING,
    experimental: bool | tuple[str, ...] = False,
) -> Any:
    """A field of a `Section`; required if it has no default."""
    known = Option(kind, " ".join(help.split()), experimental)
    return field(default=default, metadata={"option": known})


def option_of(item: Field) -> Option:
    """The `Option` of a field of a `Section`."""
    return item.metadata["option"]


@dataclass(frozen=True)
class Section:
    """Base of the parts of `kd_conf`: fields are checked and stored as parsed.

    Attributes:
        is_experimental: True if no preset, recipe or row of results uses the section;
            its fields are then not marked individually.
    """

    is_experimental: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = option_of(item).kind.parse(item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)


def build(cls: type, values: Any, where: str) -> Any:
    """A section from a mapping of a YAML file.

    Args:
        where: prefix of messages, for example `kd_conf.hidden[0]`.

    Raises:
        ValueError: a field is unknown or missing, or its value is not allowed.
    """
    check_mapping(values, where)
    known = [item.name for item in fields(cls)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: no such field; known: {known}")
    for item in fields(cls):
        if item.default is MISSING and item.name not in values:
            raise ValueError(f"{where}: {item.name} is missing; it has no default")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_mapping(values: Any, where: str) -> None:
    """ValueError unless `values` maps names to values."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: {values!r} is not a mapping of names to values")


def listed(names: Sequence[str], word: str = "or") -> str:
    """For example `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
