"""Decodings by kd.sh or asr.sh: <exp>/<inference_tag>/<set>/text of experiments."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

# A set, and org/<set>, kept by asr.sh from before it removed utterances.
TEXTS = ("*/text", "org/*/text")

Systems = Mapping[str, Sequence[Path]]  # name -> experiment folder of each run (seed)


def add_system_option(parser: argparse._ActionsContainer) -> None:
    """--system, once for each of `Systems`."""
    parser.add_argument(
        "--system",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "EXP"),
        help="a system and its experiment folder, one for each run (seed) of it; give "
        "the option once per system. A system that did not decode a test set is left "
        "out with a warning",
    )


def systems_of(given: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    """The values of --system.

    Raises:
        ValueError: a name without a folder, or a name that occurs twice.
    """
    systems: dict[str, list[Path]] = {}
    for name, *folders in given:
        if not folders:
            raise ValueError(
                f"--system {name}: needs a name and at least one experiment folder"
            )
        if name in systems:
            raise ValueError(f"--system {name}: occurs twice; give each name once")
        systems[name] = [Path(folder) for folder in folders]
    return systems


def find_decoded(systems: Systems, tag: str) -> dict[str, dict[str, list[Path]]]:
    """Hypotheses (Kaldi text files) of all runs, by set and system.

    A system without a decoding of a set is left out there, with a warning.

    Raises:
        ValueError: some runs of a system decoded a set and others did not.
    """
    sets = {
        text.parent.relative_to(exp / tag).as_posix()
        for exps in systems.values()
        for exp in exps
        for pattern in TEXTS
        for text in (exp / tag).glob(pattern)
    }
    if not sets:
        folders = sorted(f"{exp}/{tag}" for exps in systems.values() for exp in exps)
        logging.warning(
            f"nothing is decoded: no <set>/text in {', '.join(folders)}; run stage 12 "
            "of kd.sh first"
        )
    return {name: _texts_of_set(systems, tag, name) for name in sorted(sets)}


def _texts_of_set(systems: Systems, tag: str, set_name: str) -> dict[str, list[Path]]:
    found = {}
    for name, exps in systems.items():
        paths = [exp / tag / set_name / "text" for exp in exps]
        lacking = [path for path in paths if not path.exists()]
        if not lacking:
            found[name] = paths
        elif len(lacking) < len(paths):
            raise ValueError(
                f"--system {name}: {lacking[0]}: not found, but other runs decoded "
                f"{set_name}; decode this one too (stage 12 of kd.sh) or leave it out"
            )
        else:
            logging.warning(
                f"--system {name}: {lacking[0]}: not found; the table of {set_name} is "
                "without it"
            )
    return found
