"""Turn a Lhotse manifest into a Kaldi data folder, after checking it."""

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.kaldi import cuts_to_kaldi
from espnet_kd.data.validate import listing, validate_cuts


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("cuts_to_kaldi", __doc__)
    parser.add_argument(
        "--cuts_file", type=Path, required=True, help="manifest: *.jsonl or *.jsonl.gz"
    )
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="Kaldi folder to write"
    )
    parser.add_argument(
        "--check_audio",
        choices=("true", "false"),
        default="true",
        help="check the header of every audio file",
    )
    parser.add_argument(
        "--max_problems", type=int, default=20, help="number of problems to print"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Check, write."""
    if not args.cuts_file.is_file():
        raise FileNotFoundError(
            f"--cuts_file {args.cuts_file}: no such file. Make it: kaldi_to_cuts."
        )
    from lhotse import CutSet  # slow to import

    cuts = CutSet.from_jsonl_lazy(args.cuts_file)
    problems = validate_cuts(cuts, check_audio=args.check_audio == "true")
    if problems:
        shown = listing(problems, args.max_problems)
        raise ValueError(f"{args.cuts_file}: {len(problems)} problems\n{shown}")
    try:
        number = cuts_to_kaldi(cuts, args.data_dir)
    except ValueError as error:
        raise ValueError(f"{args.cuts_file}: {error}") from error
    print(f"{args.data_dir}: {number} utterances from {args.cuts_file}")


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
