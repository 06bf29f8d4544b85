"""Make the sets of egs/mini: synthetic speech with noise, nothing to download."""

import argparse
import sys
from collections.abc import Iterator

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
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser, SIZES, snr=(5.0, 20.0))
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Parse, make, write."""
    args = get_parser().parse_args(cmd)

    def make(part: str, number: int) -> Iterator[Utterance]:
        yield from synthetic.utterances(part, number, snr=args.snr, seed=args.seed)

    try:
        prepare(args, make, synthetic.RATE)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"prepare_mini: {error}")


if __name__ == "__main__":
    main()
