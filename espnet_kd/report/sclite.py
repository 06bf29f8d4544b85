"""Where NIST's scorer sclite lies."""

from __future__ import annotations

import os
import shutil

# Where Debian's package sctk has its programs; on PATH it puts only `sctk`.
SCTK_FOLDER = "/usr/lib/sctk/bin"


def find_sclite() -> str | None:
    """The path of sclite: on PATH, or where Debian's package sctk has it."""
    folders = [os.environ.get("PATH", ""), SCTK_FOLDER]
    return shutil.which("sclite", path=os.pathsep.join(folders))
