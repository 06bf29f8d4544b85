"""Options are marked experimental if no preset, recipe or row of results uses them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from espnet_kd.config.fields import option_of
from espnet_kd.config.losses import LOSSES, fields_of
from espnet_kd.config.reference import EXPERIMENTAL_OPTIONS, experimental, parts
from espnet_kd.config.schedules import Schedule

REPO = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("conf", "egs")
    for path in sorted((REPO / folder).rglob("*"))
    if path.is_file() and path.suffix in (".yaml", ".sh", ".md")
]
ON_A_LINE = re.compile(r"""--kd_conf[ =]([\w.]+)=("[^"]*"|[^\s'"`]*)""")


def text_of(path: Path) -> str:
    """A file's text, without the comments of scripts."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"(^|\s)#.*", "", text) if path.suffix == ".sh" else text


def given() -> Iterator[dict]:
    """Every `kd_conf` of a preset or recipe, and every option of it on a line."""
    for path in FILES:
        text = text_of(path)
        if path.suffix == ".yaml":
            conf = yaml.safe_load(text)
            yield (conf.get("kd_conf") or {}) if isinstance(conf, dict) else {}
            continue
        for name, value in ON_A_LINE.findall(text):
            *sections, field = name.split(".")
            conf = {field: yaml.safe_load(value)}
            for section in reversed(sections):
                conf = {section: conf}
            yield conf


def used(conf: dict, path: str = "kd_conf") -> Iterator[str]:
    """Paths of the given fields, and of those with their values."""
    for name, value in conf.items():
        here = f"{path}.{name}"
        yield here
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from used(each, "schedule" if "schedule" in each else here)
            else:
                yield f"{here}={each}"


@pytest.fixture(scope="module")
def all_used() -> set[str]:
    return {path for conf in given() for path in used(conf)}


def test_uses_are_found(all_used: set[str]):
    assert {"kd_conf.losses.nodes=path", "kd_conf.losses.k=20"} <= all_used
    assert "kd_conf.pruning.pattern=2:4" in all_used  # only in RESULTS.md
    assert "kd_conf.init_from_teacher.layers=even" in all_used


def test_marks_are_true(all_used: set[str]):
    unused = [f"kd_conf.losses.nodes={n}" for n in LOSSES]
    unused += ["kd_conf.hidden", *(f"schedule.{f.name}" for f in fields(Schedule))]
    sections = ("kd_conf.hidden", "schedule")
    for part in parts():
        path = part.path.removesuffix("[]")
        if path not in sections:
            unused += [f"{path}.{row.name}" for row in part.rows]
    unused = [path for path in unused if path not in all_used]
    # Fields of an unused kind of nodes are not listed again.
    of_unused_nodes = {
        f"kd_conf.losses.{name}"
        for nodes, kind in LOSSES.items()
        if f"kd_conf.losses.nodes={nodes}" in unused
        for name in fields_of(kind)
        if not any(name in fields_of(each) for each in LOSSES.values() if each != kind)
    }
    expected = {
        path.partition(".")[0] if path.startswith("schedule.") else path
        for path in unused
        if path not in of_unused_nodes
    }
    whole = {path for path in experimental() if "=" not in path}
    nodes = {path for path in experimental() if ".nodes=" in path}
    assert whole | nodes == expected


def test_marks_of_names_are_true(all_used: set[str]):
    """A choice also counts as used if it is the default."""
    whole = set(experimental())
    expected = {
        f"{path}={name}"
        for part in parts()
        for row in part.rows
        for path in [f"{part.path.removesuffix('[]')}.{row.name}"]
        if path not in whole and path.rpartition(".")[0] not in whole
        for name in getattr(row.option.kind, "names", ())
        if f"{path}={name}" not in all_used and name != row.default
    }
    marked = {path for path in experimental() if "=" in path and ".nodes=" not in path}
    assert marked == expected


def test_options_of_commands():
    """For each command that a recipe calls."""
    text = "\n".join(map(text_of, FILES))
    presets = [yaml.safe_load(p.read_text()) for p in (REPO / "conf/kd").glob("*.yaml")]
    given = {name for preset in presets for name in preset.get("kd_set") or {}}
    given |= set(re.findall(r"--([a-z]\w*)", text))
    unused = {}
    for path in sorted((REPO / "espnet_kd" / "bin").glob("*.py")):
        module = importlib.import_module(f"espnet_kd.bin.{path.stem}")
        is_ours = hasattr(module, "get_parser") and not path.stem.endswith("_train")
        if is_ours and f"espnet_kd.bin.{path.stem} " in text:
            names = [
                option[2:]
                for action in module.get_parser()._actions
                for option in action.option_strings
                if option.startswith("--") and option[2:] not in (*given, "help")
            ]
            unused |= {path.stem: tuple(names)} if names else {}
    remedy = "change EXPERIMENTAL_OPTIONS in espnet_kd/config/reference.py"
    assert unused == EXPERIMENTAL_OPTIONS, remedy


def test_every_field_has_help():
    for part in parts():
        for row in part.rows:
            assert row.option.help.endswith("."), f"{part.path}.{row.name}"
    for kind in LOSSES.values():
        assert kind.compared and kind.needs
        assert all(option_of(item) for item in fields(kind))
