"""Make the connected-digit sets of egs/fsdd from real recordings of single digits."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.corpora import fsdd
from espnet_kd.corpora.sets import Utterance, add_options, prepare

SIZES = {
    "train_teacher": 3000,
    "train_labelled": 375,
    "train_unlabelled": 1500,
    "valid": 150,
    "test": 1000,
}


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("prepare_fsdd", __doc__)
    parser.add_argument(
        "--fsdd_dir",
        type=Path,
        default=Path("downloads/free-spoken-digit-dataset"),
        help="the data set, with recordings/",
    )
    add_options(parser, SIZES, snr=(0.0, 20.0))
    return parser


def run(args: argparse.Namespace) -> None:
    """Make, write."""

    def make(part: str, number: int) -> Iterator[Utterance]:
        recordings = fsdd.load_recordings(args.fsdd_dir, part)
        yield from fsdd.utterances(
            recordings, part, number, snr=args.snr, seed=args.seed
        )

    prepare(args, make, fsdd.RATE)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
