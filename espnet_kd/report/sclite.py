"""Finds NIST's scorer sclite."""

from __future__ import annotations

import os
import shutil

# Programs of Debian's package sctk, which has only `sctk` on PATH.
SCTK_FOLDER = "/usr/lib/sctk/bin"
HOW_TO_GET = (
    "Debian: apt install sctk; in an ESPnet checkout: tools/installers/install_sctk.sh"
)


def find_sclite() -> str | None:
    """The path of sclite: on PATH, or in Debian's package sctk; None if not found."""
    folders = [os.environ.get("PATH", ""), SCTK_FOLDER]
    return shutil.which("sclite", path=os.pathsep.join(folders))


def require_sclite(otherwise: str = "") -> str:
    """The path of sclite.

    Args:
        otherwise: another remedy, for the message if it is missing.

    Raises:
        FileNotFoundError: it is not installed; the message has instructions.
    """
    program = find_sclite()
    if program is None:
        raise FileNotFoundError(
            f"sclite: not found on PATH; install SCTK ({HOW_TO_GET}), or add the "
            f"folder of sclite to PATH{otherwise}"
        )
    return program
