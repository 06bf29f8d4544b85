"""ESPnet's own recipes, for the tests that need them."""

import os
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.recipes.espnet_recipes import RELEASE, SHARED, fetch

ROOTS = [Path(root) for root in os.environ.get("ESPNET_ROOT", "").split(":") if root]


@pytest.fixture(
    scope="session",
    params=ROOTS or [None],
    ids=[root.name for root in ROOTS] or [RELEASE],
)
def espnet_root(request) -> Path:
    """Each checkout of ESPNET_ROOT, or the recipes of the installed ESPnet."""
    if request.param:
        needed = (*SHARED, "egs2/mini_an4/asr1")
        lacking = [name for name in needed if not (request.param / name).exists()]
        assert not lacking, f"ESPNET_ROOT: {request.param} lacks {lacking}"
        return request.param
    if version("espnet") != RELEASE:
        pytest.skip(
            f"ESPnet {version('espnet')} is installed, the recipes that are downloaded "
            f"are those of {RELEASE}: name a checkout of yours by ESPNET_ROOT"
        )
    try:
        return fetch()
    except ConnectionError as error:
        # In CI these tests must not be skipped.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
