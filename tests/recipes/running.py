"""A recipe's script as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.starts import environment

REPO = Path(__file__).parents[2]
# kd.sh resolves its names, and does nothing.
NO_STAGE = "--skip_data_prep true --skip_train true --skip_eval true".split()


def run_script(folder: Path, words: Sequence[str], **variables: str) -> str:
    """Run a script of a recipe in its folder; return its output.

    Args:
        folder: the recipe.
        words: the script and its options.
        variables: of the environment.
    """
    answer = subprocess.run(
        words,
        cwd=folder,
        env=environment(**{"PYTHON": sys.executable, **variables}),
        capture_output=True,
        text=True,
    )
    logs = (f"--- {p}\n{p.read_text()[-3000:]}" for p in folder.rglob("*.log"))
    assert answer.returncode == 0, answer.stdout + answer.stderr + "\n".join(logs)
    return answer.stdout
