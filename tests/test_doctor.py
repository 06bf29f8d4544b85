"""The doctor in the environment that runs the tests, and in broken ones."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from espnet_kd.bin.doctor import BROKEN, LACK, OK, conflicts, k2_wheel
from espnet_kd.models import warprnnt
from espnet_kd.models.espnet_versions import TESTED

ROOT = Path(__file__).parents[1]


def run_doctor(*python_options: str, **environment: str) -> tuple[int, dict]:
    command = [sys.executable, *python_options, "-m", "espnet_kd.bin.doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True
    )
    stated = json.loads(done.stdout)
    stated["by_name"] = {finding["name"]: finding for finding in stated["findings"]}
    return done.returncode, stated


def test_here_the_main_job_can_run(tmp_path):
    """This environment, with a k2 that cannot be loaded and an sclite put before it."""
    (tmp_path / "k2").mkdir()
    (tmp_path / "k2" / "__init__.py").write_text(
        "raise ImportError('libk2.so: undefined symbol')"
    )
    sclite = tmp_path / "sclite"
    sclite.write_text("#!/bin/sh\n")
    sclite.chmod(0o755)
    code, stated = run_doctor(
        PYTHONPATH=f"{tmp_path}:{ROOT}", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    assert code == 0 and stated["main_job"] is True
    found = stated["by_name"]
    assert found["espnet"]["status"] == OK and found["espnet"]["found"][:4].isdigit()
    assert found["k2"]["status"] == LACK
    assert "undefined symbol" in found["k2"]["found"] and found["k2"]["remedy"]
    assert found["sclite"] == {
        "name": "sclite",
        "status": OK,
        "found": str(sclite),
        "remedy": "",
    }
    # Another test of this process may have installed our stand-in.
    stands_in = warprnnt.installed() != "real"
    assert ("stand-in" in found["warprnnt_pytorch"]["found"]) == stands_in


def test_without_any_package():
    code, stated = run_doctor("-S")  # -S: Python without its site-packages
    assert code == 1 and stated["main_job"] is False
    packages = ("torch", "espnet", "lhotse", "kaldialign", "espeakng_loader")
    for name in (*packages, "training", "statistics", "decoding"):
        assert stated["by_name"][name]["status"] == BROKEN
        assert stated["by_name"][name]["remedy"]
    assert stated["by_name"]["k2"]["status"] == LACK


def test_what_a_training_lacks_is_reported(tmp_path):
    """Also what ESPnet imports late, at the start of training or after an epoch."""
    for package in ("editdistance", "tensorboard"):
        code = f"raise ModuleNotFoundError(name='{package}')"
        (tmp_path / f"{package}.py").write_text(code)
    (tmp_path / "humanfriendly.py").write_text("raise ImportError('no parse_size')")
    code, stated = run_doctor(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 1 and stated["main_job"] is False
    found = stated["by_name"]
    for package in ("editdistance", "tensorboard"):
        assert found[package]["status"] == BROKEN
        assert found[package]["found"] == f"absent ({package})"
    assert found["training"]["status"] == BROKEN
    assert "no parse_size" in found["training"]["found"]


def test_a_checkout_before_the_installed_espnet(tmp_path):
    """ESPnet itself reports the installed version."""
    folder = Path(find_spec("espnet2").origin).parent
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(folder, tmp_path / "espnet2", ignore=skip)
    (tmp_path / "version.txt").write_text("209901\n")
    code, stated = run_doctor(PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code == 0  # newer than tested is not a fault
    espnet = stated["by_name"]["espnet"]
    assert espnet["found"] == f"209901, from {tmp_path}"
    assert espnet["status"] == LACK and TESTED[-1] in espnet["remedy"]


@pytest.mark.parametrize(
    "torch, cuda, words",
    [
        ("1.13.1+cu117", "11.7", "k2==1.23.4 of PyPI"),
        ("2.8.0+cpu", "", "k2==1.24.4.dev20260625+cpu.torch2.8.0 "),
        ("2.8.0", "12.8", "k2==1.24.4.dev20260625+cuda12.8.torch2.8.0 "),
        ("2.13.0+cu130", "13.0", "k2==1.24.4.dev20260710+cuda13.0.torch2.13.0 "),
        ("2.14.1", "13.0", "no wheel for torch 2.14.1; the newest is for torch 2.13.0"),
    ],
)
def test_the_k2_for_a_torch(torch, cuda, words):
    assert words in k2_wheel(torch, cuda)


TESTED_A = dict(
    python="3.10.13",
    numpy="1.23.5",
    torch="1.13.1",
    espnet="202412",
    k2="1.23.4",
    torch_cuda="11.7",
    k2_cuda="11.7",
)
TESTED_B = dict(python="3.11.7", numpy="2.4.6", torch="2.8.0", espnet="202511")
TESTED_C = dict(python="3.12.1", numpy="2.5.5", torch="2.13.0", espnet="202611")


@pytest.mark.parametrize(
    "facts",
    [
        TESTED_A,
        TESTED_B,
        TESTED_C,
        {**TESTED_C, "python": "3.13.0", "torch": "2.14.1+cu130"},
        {**TESTED_B, "torch_cuda": "12.8"},
        {**TESTED_A, "torch_cuda": "", "k2_cuda": ""},
        {**TESTED_B, "k2": "1.24.4.dev20250714+cuda12.8.torch2.8.0", "k2_cuda": "12.8"},
        {"python": "3.12.1"},
    ],
)
def test_good_combinations_pass(facts):
    assert conflicts(facts) == []


@pytest.mark.parametrize(
    "change, name, status",
    [
        ({"numpy": "1.24.0"}, "numpy with ESPnet", BROKEN),
        ({"numpy": "2.1.0"}, "numpy with ESPnet", BROKEN),
        ({"python": "3.11.7"}, "k2 with Python", LACK),
        ({"torch": "2.6.0+cu124"}, "torch with ESPnet", LACK),
        ({"k2_cuda": ""}, "k2 with CUDA", LACK),
    ],
)
def test_known_bad_combinations_are_reported(change, name, status):
    (finding,) = conflicts({**TESTED_A, **change})
    assert (finding.name, finding.status) == (name, status)
    assert finding.remedy
    (fact,) = change.values()
    assert fact in finding.found
