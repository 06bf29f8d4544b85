"""KD presets (conf/kd/*.yaml), read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet_kd.config.files import read_yaml
from espnet_kd.config.kd_conf import parse_kd_conf

SECTIONS = ("kd_set", "kd_conf", "training")


def read_preset(path: str | Path) -> dict:
    """The sections of a preset.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a section is unknown or the losses are not valid.
    """
    preset = read_yaml(path)
    for name in preset:
        if name not in SECTIONS:
            raise ValueError(f"{path}: {name}: no such section; known: {SECTIONS}")
    try:
        parse_kd_conf(preset.get("kd_conf") or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return preset


def merged(config: Mapping[str, Any], preset: Mapping[str, Any]) -> dict:
    """A training configuration overridden by `training` and `kd_conf` of a preset;
    nested options (`..._conf`) are merged entry by entry."""
    both = dict(config)
    given = {**(preset.get("training") or {}), "kd_conf": preset.get("kd_conf") or {}}
    for name, value in given.items():
        both_nested = isinstance(value, dict) and isinstance(both.get(name), dict)
        both[name] = {**both[name], **value} if both_nested else value
    return both
