"""Turn a Kaldi data folder into a Lhotse manifest, after checking it."""

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_whole
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import listing, validate_kaldi


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("kaldi_to_cuts", __doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="Kaldi folder")
    parser.add_argument(
        "--output_file",
        type=Path,
        required=True,
        help="manifest: *.jsonl or *.jsonl.gz",
    )
    parser.add_argument(
        "--sampling_rate", type=int, help="of the audio, in Hz; default: from the data"
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
    if not args.output_file.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(
            f"--output_file {args.output_file}: must end in .jsonl or .jsonl.gz"
        )
    problems = validate_kaldi(args.data_dir, check_audio=args.check_audio == "true")
    if problems:
        shown = listing(problems, args.max_problems)
        raise ValueError(f"{args.data_dir}: {len(problems)} problems\n{shown}")
    cuts = cuts_from_kaldi(args.data_dir, args.sampling_rate)
    write_whole(args.output_file, cuts.to_file)
    print(f"{args.output_file}: written from {args.data_dir}")


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
