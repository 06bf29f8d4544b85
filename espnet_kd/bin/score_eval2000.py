"""Score decodings of eval2000 with its stm and glm files: swbd, callhm and all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.data.files import write_whole
from espnet_kd.report.eval2000 import ALIGNERS, Scorer
from espnet_kd.report.render import markdown
from espnet_kd.report.scoring import ScoredSet, read_text
from espnet_kd.report.summary import Roles, System, summarise


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet_kd.bin.score_eval2000",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
    parser.add_argument(
        "--scorer",
        choices=sorted(ALIGNERS),
        default="own",
        help="what aligns; both count as sclite -F -D",
    )
    parser.add_argument("--output", type=Path, help="Markdown file")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, score, print, write."""
    args = get_parser().parse_args(argv)
    try:
        table = _table(args)
    except (ValueError, OSError) as error:
        sys.exit(f"score_eval2000: {error}")
    print(table, end="")
    if args.output:
        write_whole(args.output, lambda part: part.write_text(table, encoding="utf-8"))


def _table(args: argparse.Namespace) -> str:
    scorer = Scorer(args.data_dir / "stm", args.data_dir / "glm", args.scorer)
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


if __name__ == "__main__":
    main()
