"""Sparse students of both tasks, written once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.models import write_recipe, write_student
from tests.tasks.recipe import Recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return write_recipe(tmp_path_factory.mktemp("export"))


@pytest.fixture
def student(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """(kind, pattern) -> experiment folder; the recipe is the current folder."""
    monkeypatch.chdir(recipe.folder)

    def folder(kind: str, pattern: str = "0.8") -> Path:
        name = f"{kind}_{pattern}".replace(":", "to")
        exp = recipe.folder / name
        return exp if exp.exists() else write_student(recipe, kind, pattern, name)

    return folder
