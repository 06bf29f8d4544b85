#!/usr/bin/env python3
"""Format a Kaldi data folder for ESPnet's training, with speed perturbation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.format import format_data
from espnet_kd.data.validate import listing, validate_kaldi


def sampling_rate(text: str) -> int:
    """Parse 8k, 16k or 8000."""
    return int(float(text[:-1]) * 1000) if text.endswith("k") else int(text)


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = new_parser("format_data", __doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="data/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="dump/raw/<set>")
    parser.add_argument("--fs", type=sampling_rate, default=16000, help="Hz, or 8k")
    parser.add_argument(
        "--speed_perturb_factors",
        type=float,
        nargs="+",
        default=[1.0],
        help="one copy of the set for each speed",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Validate, then format."""
    problems = validate_kaldi(args.data_dir)
    if problems:
        shown = listing(problems, 20)
        raise ValueError(f"{args.data_dir}: {len(problems)} problems\n{shown}")
    number = format_data(
        args.data_dir, args.output_dir, args.fs, args.speed_perturb_factors
    )
    print(f"{args.output_dir}: {number} utterances")


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
