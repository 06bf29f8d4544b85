#!/usr/bin/env python3
"""Format a Kaldi data folder as ESPnet trains from it, with speed perturbation."""

from __future__ import annotations

import argparse
from pathlib import Path

from espnet_kd.data.format import format_data
from espnet_kd.data.validate import listing, validate_kaldi


def sampling_rate(text: str) -> int:
    """8k, 16k or 8000."""
    return int(float(text[:-1]) * 1000) if text.endswith("k") else int(text)


def get_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="data/<set>")
    parser.add_argument("--output_dir", type=Path, required=True, help="dump/raw/<set>")
    parser.add_argument("--fs", type=sampling_rate, default=16000, help="Hz, or 8k")
    parser.add_argument(
        "--speed_perturb_factors",
        type=float,
        nargs="+",
        default=[1.0],
        help="One copy of the set for each speed",
    )
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Validate, then format."""
    args = get_parser().parse_args(cmd)
    problems = validate_kaldi(args.data_dir)
    if problems:
        shown = listing(problems, 20)
        raise SystemExit(f"{args.data_dir}: {len(problems)} problems\n{shown}")
    try:
        number = format_data(
            args.data_dir, args.output_dir, args.fs, args.speed_perturb_factors
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"format_data: {error}") from error
    print(f"{args.output_dir}: {number} utterances")


if __name__ == "__main__":
    main()
