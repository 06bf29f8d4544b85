"""List what is installed and what is missing, with a remedy for each.

The exit code is 0 if the main job (``make demo``) can run, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import io
import json
import platform
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.models.espnet_versions import TESTED, installed_version, is_checkout
from espnet_kd.report.sclite import HOW_TO_GET, find_sclite

# Modules that kd.sh runs; importing them shows what is missing.
STAGES = {
    "training": ("espnet_kd.tasks.asr", "espnet_kd.tasks.asr_transducer"),
    "statistics": ("espnet2.bin.aggregate_stats_dirs", "espnet2.bin.launch"),
    "decoding": ("espnet2.bin.asr_inference", "espnet2.bin.asr_transducer_inference"),
}
OK, LACK, BROKEN = "ok", "lack", "broken"
_BUILD = "build an environment: make env"
# As in ESPnet 202611's tools/installers/install_k2.sh.
K2_NEWEST_TORCH = (2, 13, 0)


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: of the checked item.
        status: "ok"; "lack" if the main job runs without it; "broken" if not.
        found: version, path or error text.
        remedy: what to do; empty if nothing is needed.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Check everything, without changes or downloads."""
    findings = [_python()]
    findings += [_package(name) for name in ("torch", "torchaudio")]
    findings += [_espnet(), *map(_stage, STAGES)]
    # ESPnet imports the last three during training.
    for name in (
        "lhotse",
        "sentencepiece",
        "kaldialign",
        "numpy",
        "scipy",
        "soundfile",
        "matplotlib",
        "editdistance",
        "tensorboard",
    ):
        findings.append(_package(name))
    findings += [_k2(), _warprnnt(), _espeak(), _gpu()]
    findings += [
        _sclite(),
        _program("sox", "sox; only corpora whose wav.scp pipes through it need it"),
        _program("flac", "flac; only recipes that read flac by a pipe need it"),
    ]
    return findings + conflicts(_facts())


def conflicts(facts: dict[str, str]) -> list[Finding]:
    """Combinations of versions that are known not to work together.

    Args:
        facts: versions under "python", "numpy", "torch", "espnet", "k2", and the CUDA
            version under "torch_cuda" and "k2_cuda". A missing or empty value means not
            installed (or built for CPU).
    """
    python, numpy, torch, espnet, k2 = (
        _release(facts.get(name, ""))
        for name in ("python", "numpy", "torch", "espnet", "k2")
    )
    found = []
    if numpy >= (1, 24) and espnet and espnet < (202500,):
        found.append(
            Finding(
                "numpy with ESPnet",
                BROKEN,
                f"numpy {facts['numpy']}, ESPnet {facts['espnet']}",
                'pip install "numpy<1.24", or use ESPnet 202511 or later',
            )
        )
    if k2 and k2 < (1, 24) and python >= (3, 11):
        found.append(
            Finding(
                "k2 with Python",
                LACK,
                f"k2 {facts['k2']}, Python {facts['python']}",
                "this wheel has code for Python 3.10 only: pip uninstall k2, or use "
                "Python 3.10 (make env ENV=A), or k2's wheel for your torch",
            )
        )
    if torch >= (2, 6) and espnet and espnet < (202500,):
        found.append(
            Finding(
                "torch with ESPnet",
                LACK,
                f"torch {facts['torch']}, ESPnet {facts['espnet']}",
                "training works, but cannot be resumed (torch.load refuses the "
                "checkpoint): use torch<2.6, or ESPnet 202511 or later",
            )
        )
    if k2 and facts.get("torch_cuda") and not facts.get("k2_cuda"):
        found.append(
            Finding(
                "k2 with CUDA",
                LACK,
                f"torch for CUDA {facts['torch_cuda']}, k2 for CPU",
                "on a GPU lattices use the torch backend; install k2's CUDA wheel for "
                "this torch",
            )
        )
    return found


def _facts() -> dict[str, str]:
    facts = {"python": platform.python_version()}
    for package in ("numpy", "torch", "k2"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            pass
    if find_spec("espnet2") is not None:
        facts["espnet"] = installed_version()
    for name, read in ("torch_cuda", _torch_cuda), ("k2_cuda", _k2_cuda):
        try:
            facts[name] = read()
        except Exception:  # a broken import is reported separately
            # Unknown is not CPU-only: skip pairs that cannot be compared.
            facts.pop("torch_cuda", None)
    return facts


def _torch_cuda() -> str:
    import torch

    return torch.version.cuda or ""


def _k2_cuda() -> str:
    import k2
    from k2.torch_version import k2_torch_cuda_version

    return k2_torch_cuda_version if k2.with_cuda else ""


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version: "1.13.1+cu117" -> (1, 13, 1); "" -> ()."""
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _python() -> Finding:
    fits = (3, 10) <= sys.version_info < (3, 14)
    return Finding(
        "Python",
        OK if fits else BROKEN,
        f"{platform.python_version()}, {sys.executable}",
        "" if fits else "must be Python 3.10 to 3.13; then make env",
    )


def _package(name: str) -> Finding:
    return _tried(name, lambda: _load(name), BROKEN, _BUILD)


def _load(name: str) -> str:
    loaded = importlib.import_module(name)
    if name != "torch":
        return version(name)
    return f"{loaded.__version__}, CUDA {loaded.version.cuda or 'none'}"


def _espnet() -> Finding:
    def look() -> str:
        folder = Path(importlib.import_module("espnet2").__file__).parent
        place = f", from {folder.parent}" if is_checkout(folder) else ""
        return installed_version() + place

    finding = _tried("espnet", look, BROKEN, _BUILD)
    if finding.status == OK and _release(installed_version()) > _release(TESTED[-1]):
        remedy = (
            f"newer than {TESTED[-1]}, the newest tested version; compare a first run"
        )
        return replace(finding, status=LACK, remedy=remedy)
    if finding.status == OK and _release(installed_version()) < _release(TESTED[0]):
        remedy = f"older than {TESTED[0]}, the oldest tested version; use a newer one"
        return replace(finding, status=LACK, remedy=remedy)
    return finding


def _stage(name: str) -> Finding:
    def look() -> str:
        for module in STAGES[name]:
            importlib.import_module(module)
        return f"can be imported: {', '.join(STAGES[name])}"

    return _tried(name, look, BROKEN, f"{_BUILD}; or install the packages named above")


def _tried(name: str, look: Callable[[], str], status: str, remedy: str) -> Finding:
    """The result of ``look``, or its error text with ``status`` and ``remedy``."""
    try:
        # Imports must not print into the JSON; ESPnet's mentions a download and an
        # optional package.
        nothing = io.StringIO()
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            return Finding(name, OK, look())
    except ModuleNotFoundError as error:
        return Finding(name, status, f"absent ({error.name})", remedy)
    except Exception as error:  # whatever a broken installation raises
        text = str(error).strip().splitlines() or [""]
        return Finding(name, status, f"{type(error).__name__}: {text[0]}", remedy)


def _k2() -> Finding:
    def look() -> str:
        cuda = _k2_cuda()
        from k2.torch_version import k2_torch_version

        return f"{version('k2')}, CUDA {cuda or 'none'}, for torch {k2_torch_version}"

    try:
        wheel = k2_wheel(version("torch"), _torch_cuda())
    except Exception:  # a broken torch is reported separately
        wheel = "k2's wheel for your torch"
    remedy = (
        f"optional: {wheel}. Without k2 lattices use the torch backend, and "
        "asr_transducer's k2-pruned loss is not available"
    )
    return _tried("k2", look, LACK, remedy)


def k2_wheel(torch: str, cuda: str) -> str:
    """The k2 that fits an installed torch; from 2.0 on k2 has its own wheel index.

    Args:
        torch: its version, e.g. "2.13.0+cu130".
        cuda: its CUDA version, e.g. "13.0"; empty for a CPU build.
    """
    torch = torch.split("+")[0]
    if _release(torch) < (2, 0):
        return "k2==1.23.4 of PyPI, for Python 3.10 and torch 1.13.1 (make env ENV=A)"
    if _release(torch) > K2_NEWEST_TORCH:
        newest = ".".join(map(str, K2_NEWEST_TORCH))
        return f"k2 has no wheel for torch {torch}; the newest is for torch {newest}"
    build = "20260710" if _release(torch) == K2_NEWEST_TORCH else "20260625"
    kind = f"cuda{cuda}" if cuda else "cpu"
    return (
        f"k2==1.24.4.dev{build}+{kind}.torch{torch} of k2's own wheel index (its "
        f"documentation, Installation; +cpu.torch{torch} without a GPU)"
    )


def _warprnnt() -> Finding:
    if find_spec("warprnnt_pytorch") is None:
        return Finding("warprnnt_pytorch", OK, "absent; our stand-in is used")
    return _tried(
        "warprnnt_pytorch",
        lambda: f"real, {importlib.import_module('warprnnt_pytorch').__file__}",
        LACK,
        "remove the broken package: our stand-in is used without one",
    )


def _espeak() -> Finding:
    def look() -> str:
        import espeakng_loader

        ctypes.CDLL(espeakng_loader.get_library_path())
        return version("espeakng-loader")

    remedy = "pip install espeakng-loader; it synthesises the audio of make demo"
    return _tried("espeakng_loader", look, BROKEN, remedy)


def _gpu() -> Finding:
    remedy = "optional: the demo runs on the CPU; real corpora need a GPU"
    finding = _tried("GPU", _gpu_names, LACK, remedy)
    return finding if finding.found else Finding("GPU", LACK, "none", remedy)


def _gpu_names() -> str:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(torch.cuda.get_device_name(i) for i in range(count))


def _sclite() -> Finding:
    return _at(
        find_sclite(),
        "sclite",
        f"SCTK ({HOW_TO_GET}); until then kaldialign scores, and eval2000 cannot be "
        "scored",
    )


def _program(name: str, install: str) -> Finding:
    return _at(shutil.which(name), name, install)


def _at(path: str | None, name: str, install: str) -> Finding:
    if path:
        return Finding(name, OK, path)
    return Finding(name, LACK, "not on PATH", f"optional: install {install}")


def can_run(findings: list[Finding]) -> bool:
    """Whether the main job can run, according to the findings."""
    return all(finding.status != BROKEN for finding in findings)


def _show(findings: list[Finding]) -> None:
    # Plain text: this command must work before anything is installed.
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:6}  {finding.name:{width}}  {finding.found}")
        indent = " " * (width + 10)
        for line in textwrap.wrap(finding.remedy, 88 - len(indent)):
            print(indent + line)
    print()
    if can_run(findings):
        print("The main job can run: make demo")
    else:
        print("The main job cannot run: see the lines marked broken")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("doctor", __doc__)
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if the main job cannot run."""
    findings = examine()
    if args.json:
        stated = {
            "main_job": can_run(findings),
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(stated, indent=2))
    else:
        _show(findings)
    return 0 if can_run(findings) else 1


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
