"""Files and folders that are written completely or not at all.

Everything is written under a hidden name beside its destination and renamed when
complete, so a kill leaves the old one or the new one (for a folder, in the instant
between two renames, neither).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a temporary file beside ``path``, then rename it.

    The temporary name keeps the suffix of ``path``, by which writers choose a format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text file, completely or not at all."""
    write_whole(path, lambda part: part.write_text(text, encoding=encoding))


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file, completely or not at all, with sorted keys."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True)
    write_text(path, text + "\n")


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """A temporary folder on the same disk as ``path``, to write into and move from.

    It is removed at the end, with everything still in it. Leftovers of a killed run are
    removed first, so two runs must not write the same ``path`` at the same time.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def write_folder(path: str | Path) -> Iterator[Path]:
    """Let the body fill an empty folder, which then replaces ``path``.

    An older folder remains until then, and is kept if the body raises.
    """
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    with folder_beside(path) as new:
        yield new
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)


def move_files(new: Path, folder: Path, names: Iterable[str]) -> None:
    """Move files of ``new`` into a folder, one by one, in the order of ``names``.

    Other files in ``folder`` are left alone.
    """
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, folder / name)
