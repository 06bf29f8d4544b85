"""The pages build without a warning, and the API page is complete."""

import importlib.util
import subprocess
import sys

import pytest

from espnet_kd import lattice, losses
from tests.docs.pages import ROOT

MISSING = [
    name
    for name in ("sphinx", "myst_parser", "furo")
    if not importlib.util.find_spec(name)
]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_pages_build_without_a_warning(tmp_path):
    """As `make docs` builds them."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html"]
    command += ["-d", tmp_path / "doctrees", "docs", tmp_path / "html"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "losses_api.html").read_text(encoding="utf-8")
    missing = [
        name
        for module in (losses, lattice)
        for name in module.__all__
        if f'id="{module.__name__}.{name}"' not in page
        and f'id="{losses.__name__}.{name}"' not in page
    ]
    assert not missing, "public, but not in docs/losses_api.md"
    # What a formula or docstring that cannot be parsed looks like.
    assert "system-message" not in page
