"""Detects damaged checkpoints without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path


def damage_of(path: str | Path) -> str | None:
    """The damage of a file: empty, or "cut off after N bytes", as left by a machine
    that stops while writing. None for an intact one, and for one written by torch
    before 1.6, which is not an archive."""
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "empty"
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"cut off after {path.stat().st_size} bytes"
    return None
