"""Every message in docs/troubleshooting.md is one that the code can print."""

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def strings_of_python() -> list[str]:
    """Every string of the package, `...` where a value is filled in."""
    found = []
    for path in (ROOT / "espnet_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.append("".join(p if isinstance(p, str) else "..." for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.fixture(scope="module")
def strings() -> list[str]:
    recipe = ROOT / "egs" / "TEMPLATE" / "asr1"
    scripts = [recipe / "kd.sh", *(recipe / "utils").glob("*.sh")]
    scripts.append(ROOT / "conf/build_env.sh")
    lines = "\n".join(path.read_text() for path in scripts)
    lines = re.sub(r'" ?\\?\n *"', " ", lines)  # a message in several words
    return strings_of_python() + re.sub(r"\$\{[^}]*\}|\$\w+", "...", lines).split("\n")


@pytest.mark.parametrize("message", MESSAGES)
def test_message(message: str, strings: list[str]):
    """Its parts between `...` occur in one string, in their order."""
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    assert any(re.search(".*".join(parts), s, re.DOTALL) for s in strings)


def test_there_are_messages():
    assert len(MESSAGES) > 20 and len(set(MESSAGES)) == len(MESSAGES)
