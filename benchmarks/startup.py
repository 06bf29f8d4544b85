"""CPU time of each command's --help, and of kd.sh where everything is done.

    make demo-small
    python -m benchmarks.startup

User and system time of a process and its children, the lowest of the runs: other load
of the machine counts little. Writes startup.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

REPO = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("startup.md")
# Our asr_train and asr_transducer_train take their options from these.
ESPNETS = ("espnet2.bin.asr_train", "espnet2.bin.asr_transducer_train")


class Cost(NamedTuple):
    """Seconds of a process and its children."""

    cpu: float
    wall: float


def cost_of(words: Sequence[str], cwd: Path, **variables: str) -> Cost:
    """Run a command and count.

    Raises:
        subprocess.CalledProcessError: it failed; holds what it printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        words,
        cwd=cwd,
        env={**environment, **variables},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wall, after = time.monotonic() - started, resource.getrusage(
        resource.RUSAGE_CHILDREN
    )
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall)


def lowest(runs: int, words: Sequence[str], cwd: Path, **variables: str) -> Cost:
    """The lowest of each of the two over some runs."""
    costs = [cost_of(words, cwd, **variables) for _ in range(runs)]
    return Cost(*(min(each) for each in zip(*costs)))


def of_helps(runs: int) -> dict[str, Cost]:
    """Of --help, for each command of ours and the two of ESPnet's."""
    ours = sorted((REPO / "espnet_kd" / "bin").glob("[!_]*.py"))
    names = [path.stem for path in ours if path.stem != "command"]  # what they share
    modules = [*(f"espnet_kd.bin.{name}" for name in names), *ESPNETS]
    return {
        module: lowest(runs, [sys.executable, "-m", module, "--help"], REPO)
        for module in tqdm(modules, desc="--help", disable=None)
    }


def of_chain(runs: int, recipe: Path, size: str) -> Cost:
    """Of the demo with all stages done; missing ones run first, untimed."""
    variables = dict(DEMO_SIZE=size, PYTHON=sys.executable)
    cost_of(["./run.sh"], recipe, **variables)
    return lowest(runs, ["./run.sh"], recipe, **variables)


def main(cmd: list[str] | None = None) -> None:
    """Count and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--recipe",
        type=Path,
        default=REPO / "egs" / "mini" / "asr1",
        help="where the demo ran",
    )
    parser.add_argument("--demo_size", choices=("small", "full"), default="small")
    args = parser.parse_args(cmd)
    try:
        chain = of_chain(args.runs, args.recipe, args.demo_size)
        helps = of_helps(args.runs)
    except subprocess.CalledProcessError as error:
        sys.exit(f"startup: {error}\n{error.stdout}")
    text = page(helps, chain, args)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def page(helps: dict[str, Cost], chain: Cost, args: argparse.Namespace) -> str:
    """Both tables as Markdown."""
    packages = ("torch", "espnet", "lhotse")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# Start-up",
        "",
        "Made by `python -m benchmarks.startup`: user and system seconds of a process "
        f"and its children, the lowest of {args.runs} runs. Python "
        f"{platform.python_version()}, {versions}, {os.cpu_count()} cores.",
        "",
        f"`kd.sh` where all stages of the {args.demo_size} demo are done: "
        f"{chain.cpu:.1f} s of CPU time, {chain.wall:.1f} s in all.",
        "",
        "| --help of | s |",
        "|:--|--:|",
        *(f"| {name} | {cost.cpu:.2f} |" for name, cost in helps.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
