"""Turn a Kaldi data folder into a Lhotse manifest, after checking it."""

import argparse
import os
import sys
from pathlib import Path

from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import listing, validate_kaldi


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="Kaldi folder")
    parser.add_argument(
        "--output_file",
        type=Path,
        required=True,
        help="manifest: *.jsonl or *.jsonl.gz",
    )
    parser.add_argument(
        "--sampling_rate", type=int, help="of the audio, in Hz; from the data if absent"
    )
    parser.add_argument(
        "--check_audio",
        choices=("true", "false"),
        default="true",
        help="look at the header of every audio file",
    )
    parser.add_argument(
        "--max_problems", type=int, default=20, help="how many problems are printed"
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Parse, check, write."""
    args = get_parser().parse_args(cmd)
    if not args.output_file.name.endswith((".jsonl", ".jsonl.gz")):
        sys.exit(f"--output_file {args.output_file}: must end in .jsonl or .jsonl.gz")
    problems = validate_kaldi(args.data_dir, check_audio=args.check_audio == "true")
    if problems:
        shown = listing(problems, args.max_problems)
        sys.exit(f"{args.data_dir}: {len(problems)} problems\n{shown}")
    args.output_file.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its ending, by which Lhotse chooses the format.
    partial = args.output_file.with_name(f"tmp.{os.getpid()}.{args.output_file.name}")
    try:
        cuts_from_kaldi(args.data_dir, args.sampling_rate).to_file(partial)
        os.replace(partial, args.output_file)
    except (OSError, ValueError) as error:
        sys.exit(f"kaldi_to_cuts: {error}")
    finally:
        partial.unlink(missing_ok=True)
    print(f"{args.output_file}: written from {args.data_dir}")


if __name__ == "__main__":
    main()
