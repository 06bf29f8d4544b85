"""Pages whose changes are applied to a copy of the repository, and run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks_of


class WorkedExample:
    """A copy of the repository with the changes of a page.

    A block of Python begins with the path of its file, a diff with that of the file to
    change.
    """

    def __init__(self, page: str, root: Path) -> None:
        self.root = root
        shutil.copy(ROOT / "pyproject.toml", root)
        for name in ("espnet_kd", "tests"):
            skipped = shutil.ignore_patterns("__pycache__", "docs")
            shutil.copytree(ROOT / name, root / name, ignore=skipped)
        self.files: list[str] = []
        for block in blocks_of(ROOT / "docs" / page):
            if block.language == "diff":
                change(root, block.text)
                self.files.append(block.text.split()[1])
            elif block.language == "python":
                self.files.append(block.text.split("\n", 1)[0].removeprefix("# "))
                (root / self.files[-1]).write_text(block.text)

    @property
    def tests(self) -> list[str]:
        """The test files of the page."""
        return [name for name in self.files if name.startswith("tests/")]

    @property
    def package_files(self) -> set[str]:
        """The files of the package that the page touches."""
        return {name for name in self.files if name.startswith("espnet_kd/")}

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess:
        """Run a module of Python in the copy."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )


def change(root: Path, diff: str) -> None:
    """Make the changes of a diff; the lines of each must occur once in the file."""
    head, *hunks = re.split("^@@\n", diff, flags=re.MULTILINE)
    path = root / head.split()[1]
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines()
        old, new = (
            "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", sign))
            for sign in "-+"
        )
        assert (
            text.count(old) == 1
        ), f"{path.name} does not contain exactly once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)
