"""The environment in which tests start commands."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).parents[1]
# For chains of many commands: most of their time is spent on importing ESPnet.
FAST_START = f"{REPO / 'tests' / 'fast_start'}:{REPO}"


def environment(**variables: str) -> dict[str, str]:
    """This process's variables, our package, a quick start and one thread."""
    return {
        **os.environ,
        "PYTHONPATH": FAST_START,
        "OMP_NUM_THREADS": "1",
        **variables,
    }
