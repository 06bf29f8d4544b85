"""Where NIST's scorer sclite is."""

from __future__ import annotations

import os
import shutil

# Where Debian's package sctk has its programs; on PATH it puts only `sctk`.
SCTK_FOLDER = "/usr/lib/sctk/bin"
HOW_TO_GET = (
    "Debian: apt install sctk; in an ESPnet checkout: tools/installers/install_sctk.sh"
)


def find_sclite() -> str | None:
    """The path of sclite: on PATH, or where Debian's package sctk has it."""
    folders = [os.environ.get("PATH", ""), SCTK_FOLDER]
    return shutil.which("sclite", path=os.pathsep.join(folders))


def require_sclite(otherwise: str = "") -> str:
    """The path of sclite.

    Args:
        otherwise: what else can be done, for the message where it is missing.

    Raises:
        FileNotFoundError: it is not installed; the message tells how to get it.
    """
    program = find_sclite()
    if program is None:
        raise FileNotFoundError(
            f"sclite: not found on PATH; install SCTK ({HOW_TO_GET}), or add the "
            f"folder of sclite to PATH{otherwise}"
        )
    return program
