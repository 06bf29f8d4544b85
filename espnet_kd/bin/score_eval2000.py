"""Score decodings of eval2000 with its stm and glm files: swbd, callhm and all.

It runs `sclite -F -D` of NIST's SCTK (Debian: apt install sctk), found on PATH.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_text
from espnet_kd.report.render import markdown
from espnet_kd.report.scoring import ScoredSet, read_text
from espnet_kd.report.stm_scoring import Scorer
from espnet_kd.report.summary import Roles, System, summarise


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("score_eval2000", __doc__)
    parser.add_argument(
        "--data_dir",
        type=Path,
        default=Path("data/eval2000"),
        help="folder of the files stm and glm",
    )
    parser.add_argument(
        "--hyp",
        nargs=2,
        action="append",
        required=True,
        metavar=("NAME", "TEXT"),
        help="a system and the Kaldi text file of what it decoded, as it decoded it; "
        "give the option once per system",
    )
    parser.add_argument("--baseline", help="system that the others should beat")
    parser.add_argument("--output", type=Path, help="Markdown file")
    return parser


def run(args: argparse.Namespace) -> None:
    """Score, print, write."""
    table = _table(args)
    print(table, end="")
    if args.output:
        write_text(args.output, table)


def _table(args: argparse.Namespace) -> str:
    scorer = Scorer(args.data_dir / "stm", args.data_dir / "glm")
    found = {name: _scored(scorer, path) for name, path in args.hyp}
    parts = []
    for subset, counts in next(iter(found.values())).items():
        systems = [System(name, [sets[subset]]) for name, sets in found.items()]
        roles = Roles(baseline=args.baseline)
        title = f"## {subset}: {len(counts.ids)} segments"
        parts.append(f"{title}\n\n{markdown(summarise(systems, roles), roles)}")
    return "\n".join(parts)


def _scored(scorer: Scorer, path: str) -> dict[str, ScoredSet]:
    try:
        return scorer(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
