"""Fenced blocks of the pages, and the comments above them that name who runs them.

<!-- run by: tests/recipes/test_chain.py -->
<!-- not run: needs a trained teacher -->
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- (?P<kind>run by|not run): (?P<note>(?:(?!-->).)+) -->\n)?"
    r"```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block; `kind` is "run by", "not run", or "" without a comment."""

    page: Path
    line: int
    language: str
    text: str
    kind: str
    note: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    content = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            content.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["kind"] or "",
            " ".join((found["note"] or "").split()),
        )
        for found in FENCE.finditer(content)
    ]


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands_of(shell: str) -> list[tuple[str, list[str]]]:
    """The commands of a block, each with the folder that a `cd` before it went to.

    Variables before a command are left out, `...` stands for more options. Nothing is
    expanded: `<teacher>` and `$1` are words.
    """
    commands, folder = [], "."
    for line in shell.replace("\\\n", " ").splitlines():
        line = re.sub(r"<([^<>]*)>", lambda m: m[0].replace(" ", "_"), line)
        words = [w for w in shlex.split(line, comments=True) if w != "..."]
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words[:1] == ["cd"]:
            folder = words[1]
        elif words:
            commands.append((folder, words))
    return commands
