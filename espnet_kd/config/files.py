"""YAML files of options."""

from __future__ import annotations

from pathlib import Path

import yaml

# libyaml's, where it is there: a token list of thousands takes seconds without.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path) -> dict:
    """The options in a file, none where it is empty.

    Raises:
        OSError, yaml.YAMLError: it cannot be read, or is not YAML.
        ValueError: it holds something else than options.
    """
    with Path(path).open(encoding="utf-8") as file:  # which errors of YAML name
        options = yaml.load(file, Loader=_Loader)
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ValueError(f"{path}: must be a mapping of options to values")
    return options
