"""Make the sets of egs/mini: synthetic speech with noise, nothing to download."""

import argparse
import sys
from collections.abc import Iterator

from espnet_kd.bin.command import command, new_parser
from espnet_kd.corpora import synthetic
from espnet_kd.corpora.sets import Utterance, add_options, prepare

SIZES = {
    "train_teacher": 600,
    "train_labelled": 120,
    "train_unlabelled": 480,
    "valid": 60,
    "test": 150,
}


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("prepare_mini", __doc__)
    add_options(parser, SIZES, snr=(5.0, 20.0))
    return parser


def run(args: argparse.Namespace) -> None:
    """Make, write."""

    def make(part: str, number: int) -> Iterator[Utterance]:
        yield from synthetic.utterances(part, number, snr=args.snr, seed=args.seed)

    prepare(args, make, synthetic.RATE)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
