"""Score decodings of eval2000 with its stm and glm files: swbd, callhm and all.

It runs `sclite -F -D` of NIST's SCTK (Debian: apt install sctk), found on PATH.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_text
from espnet_kd.report.decoded import add_system_option, find_decoded, systems_of
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
        help="folder with the files stm and glm",
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--hyp",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "TEXT"),
        help="a system and the Kaldi text file of its unchanged hypotheses; give the "
        "option once per system",
    )
    add_system_option(choice)
    parser.add_argument(
        "--inference_tag",
        default="decode",
        help="with --system: name of the decoding in each experiment, as in kd.sh",
    )
    parser.add_argument("--baseline", help="system that the others should improve")
    parser.add_argument("--output", type=Path, help="Markdown file")
    return parser


def run(args: argparse.Namespace) -> None:
    """Score, print, write."""
    table = _table(args)
    print(table, end="")
    if args.output and table:
        write_text(args.output, table)


def _table(args: argparse.Namespace) -> str:
    texts = _texts(args)
    if not texts:
        return ""
    left_out = {name for name, *_ in args.system} - texts.keys()
    roles = Roles(baseline=None if args.baseline in left_out else args.baseline)
    scorer = Scorer(args.data_dir / "stm", args.data_dir / "glm")
    runs = {n: [_scored(scorer, path) for path in paths] for n, paths in texts.items()}
    parts = []
    for subset, counts in next(iter(runs.values()))[0].items():
        systems = [System(n, [sets[subset] for sets in s]) for n, s in runs.items()]
        title = f"## {subset}: {len(counts.ids)} segments"
        parts.append(f"{title}\n\n{markdown(summarise(systems, roles), roles)}")
    return "\n".join(parts)


def _texts(args: argparse.Namespace) -> dict[str, list[Path]]:
    """The hypotheses of each system's runs; of --system, if it decoded the set."""
    if args.hyp:
        return {name: [Path(path)] for name, path in args.hyp}
    found = find_decoded(systems_of(args.system), args.inference_tag)
    return found.get(args.data_dir.name, {})


def _scored(scorer: Scorer, path: Path) -> dict[str, ScoredSet]:
    try:
        return scorer(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
