"""What every test shares: a seed, and a header that names the environment."""

import platform
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


ENVIRONMENTS = {"202412": "A", "202511": "B", "202611": "C"}  # by their ESPnet


def pytest_report_header() -> str:
    espnet = _version("espnet")
    return (
        f"environment {ENVIRONMENTS.get(espnet, 'unknown')}: "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"ESPnet {espnet}, k2 {_version('k2')}, "
        f"lhotse {_version('lhotse')}"
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
