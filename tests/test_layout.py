"""Imports run one way: a package imports only from those before it (docs, DESIGN 3)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
# Bottom to top. An import from a package to one further down this list is a fault.
ORDER = (
    "config",
    "data",
    "corpora",
    "lattice",
    "losses",
    "models",
    "targets",
    "teacher",
    "distill",
    "compress",
    "student",
    "tasks",
    "report",
    "export",
    "planning",
    "shim",
    "bin",
)
# Read before a command knows whether it needs torch, as those of `config` are.
LIGHT = (
    "models.config",
    "models.checkpoints",
    "models.espnet_versions",
    "export.names",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    return {
        ".".join(path.relative_to(REPO).with_suffix("").parts): path
        for path in sorted((REPO / "espnet_kd").rglob("*.py"))
        if path.name != "__init__.py"
    } | {
        ".".join(path.relative_to(REPO).parent.parts): path
        for path in sorted((REPO / "espnet_kd").rglob("*/__init__.py"))
    }


def imports_of(name: str, path: Path, known: set[str]) -> dict[str, int]:
    """Modules of the package that a module imports, anywhere in it, with the line.

    An import inside a function or under `TYPE_CHECKING` is an import too.
    """
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.append(whole if whole in known else str(node.module))
        found |= {each: node.lineno for each in names if each in known}
    found.pop(name, None)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, dict[str, int]]:
    known = modules()
    return {name: imports_of(name, path, set(known)) for name, path in known.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_package_has_its_place(graph):
    assert {room(name) for name in graph} == set(ORDER)


def test_no_arrow_upwards(graph):
    upwards = [
        f"{name} (line {line}) imports {target}"
        for name, targets in graph.items()
        for target, line in targets.items()
        if ORDER.index(room(target)) > ORDER.index(room(name))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_circle(graph):
    """Modules of one package import each other in one direction, too."""
    left = {name: set(targets) for name, targets in graph.items()}
    # Drop those that import nothing that is left, then those that nothing left imports.
    while free := {name for name in left if not left[name] & set(left)}:
        left = {name: left[name] for name in left if name not in free}
    while top := set(left) - set().union(*left.values()):
        left = {name: left[name] for name in left if name not in top}
    assert not left, f"these import each other in a circle: {sorted(left)}"


def test_no_torch_where_none_is_needed(graph):
    """Nor through other modules; imports within functions do not count."""
    names = [name for name in graph if room(name) == "config"]
    names += [f"espnet_kd.{name}" for name in LIGHT]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_the_test_sees_imports(tmp_path):
    """In functions and under TYPE_CHECKING, and of names in packages."""
    module = tmp_path / "module.py"
    module.write_text(
        "from espnet_kd.bin import plan\n"
        "def f():\n"
        "    import espnet_kd.report.words\n"
        "if TYPE_CHECKING:\n"
        "    from espnet_kd.report.size import parameters\n"
    )
    found = imports_of("espnet_kd.data.module", module, set(modules()))
    assert found == {
        "espnet_kd.bin.plan": 1,
        "espnet_kd.report.words": 3,
        "espnet_kd.report.size": 5,
    }
