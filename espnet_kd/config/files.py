"""YAML files of options."""

from __future__ import annotations

from pathlib import Path

import yaml

# libyaml's loader if available: without it a long token list takes seconds.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path) -> dict:
    """The options in a file; an empty file has none.

    Raises:
        OSError, yaml.YAMLError: the file cannot be read, or is not YAML.
        ValueError: it is not a mapping.
    """
    with Path(path).open(encoding="utf-8") as file:  # YAML errors name the open file
        options = yaml.load(file, Loader=_Loader)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f"{path}: must be a mapping of options to values")
    return options
