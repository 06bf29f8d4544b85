"""What every test shares: a seed, and a header that tells which environment ran."""

import platform
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def pytest_report_header() -> str:
    k2 = _version("k2")
    name = "B (torch backend)" if k2 == "absent" else "A (k2 backend)"
    return (
        f"environment {name}: Python {platform.python_version()}, "
        f"torch {torch.__version__}, ESPnet {_version('espnet')}, k2 {k2}, "
        f"lhotse {_version('lhotse')}"
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
