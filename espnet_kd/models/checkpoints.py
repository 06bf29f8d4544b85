"""Whether a checkpoint is whole, told without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path


def damage_of(path: str | Path) -> str | None:
    """What is wrong with a file: it is empty, or "cut off after N bytes", as a machine
    leaves it that stops while it writes. None for a whole one, and for one of torch
    before 1.6, which is no archive."""
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "empty"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"cut off after {path.stat().st_size} bytes"
    return None
