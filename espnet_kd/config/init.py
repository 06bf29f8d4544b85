"""`kd_conf.init_from_teacher`: layers that a student starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from espnet_kd.config.checks import integer
from espnet_kd.config.fields import Form, Integer, Section, option

LISTED = ("encoder", "decoder")  # parts whose layers may be listed
Layers = Union[str, Sequence[int]]  # "even" or numbers of the teacher's layers


def _layers(name: str, value: Any) -> Layers | Mapping[str, Layers]:
    if not isinstance(value, Mapping):
        _check_layers(name, value)
        return value
    for part, layers in value.items():
        if part not in LISTED:
            raise ValueError(f"{name}: {part!r} is not one of {list(LISTED)}")
        _check_layers(f"{name}.{part}", layers)
    return value


def _check_layers(name: str, layers: Any) -> None:
    if layers == "even":
        return
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(
            f"{name}: {layers!r} is neither even nor a list of the teacher's layers"
            + (", nor {encoder: ..., decoder: ...}" if name == "layers" else "")
        )
    for index, layer in enumerate(layers):
        integer(f"{name}[{index}]", layer, minimum=0)


@dataclass(frozen=True)
class InitConf(Section):
    """Which teacher, and which of its layers, a student starts from."""

    layers: Layers | Mapping[str, Layers] = option(
        Form("even, a list of layers, or a mapping of encoder and decoder", _layers),
        """`even` (evenly spaced layers, including the first and the last), a list of
        the teacher's encoder layers, counted from 0, one for each of the student's, or
        a mapping {encoder: even or a list, decoder: even or a list}.""",
        "even",
    )
    teacher_index: int = option(
        Integer(0),
        "Index of the teacher in `teacher_config`, counted from 0.",
        0,
        experimental=True,
    )

    def of(self, part: str) -> Layers:
        """`even` or the listed layers for a part of the model."""
        if isinstance(self.layers, Mapping):
            return self.layers.get(part, "even")
        return self.layers if part == "encoder" else "even"
