"""One small recipe for all tests of a module."""

import pytest

from tests.tasks.recipe import Recipe


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"))
