"""docs/adding_a_loss.md, applied to a copy of the repository: its tests pass there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of

BLOCKS = blocks_of(ROOT / "docs" / "adding_a_loss.md")


def change(root: Path, diff: str) -> None:
    """Make the changes of a diff; the lines of each must stand once in the file."""
    head, *hunks = re.split("^@@\n", diff, flags=re.MULTILINE)
    path = root / head.split()[1]
    text = path.read_text()
    for hunk in hunks:
        lines = hunk.splitlines()
        old, new = (
            "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", sign))
            for sign in "-+"
        )
        assert text.count(old) == 1, f"{path.name} has not once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> tuple[Path, list[str]]:
    """A copy of the repository with the page's changes, and the page's test files."""
    root = tmp_path_factory.mktemp("changed")
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("espnet_kd", "tests"):
        skipped = shutil.ignore_patterns("__pycache__", "docs")
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    tests = []
    for block in BLOCKS:
        if block.language == "diff":
            change(root, block.text)
        elif block.language == "python":
            tests.append(block.text.split("\n", 1)[0].removeprefix("# "))
            (root / tests[-1]).write_text(block.text)
    return root, tests


def test_the_tests_of_the_page_pass(changed):
    root, tests = changed
    assert len(tests) == 3
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_what_is_shown_is_formatted(changed):
    """As the rest of the repository; the copy has its pyproject.toml."""
    pytest.importorskip("black", reason="black is not installed")
    root, tests = changed
    files = [*tests, *(b.text.split()[1] for b in BLOCKS if b.language == "diff")]
    done = subprocess.run(
        [sys.executable, "-m", "black", "--check", "-q", "--diff", *files],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
