"""Make the sets of egs/librispeech from the corpus or Lhotse's manifests of it."""

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.corpora import librispeech
from espnet_kd.corpora.corpus import once


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("prepare_librispeech", __doc__)
    parser.add_argument(
        "--corpus_dir",
        type=Path,
        default=Path("downloads"),
        help="the folder LibriSpeech/, or its parent",
    )
    parser.add_argument(
        "--manifest_dir",
        type=Path,
        help="output of `lhotse prepare librispeech`, read instead of the corpus",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="made")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=librispeech.PARTS,
        default=list(librispeech.PARTS),
        metavar="PART",
        help="of the corpus; a set is made if all of its parts are given",
    )
    parser.add_argument(
        "--check_counts",
        choices=("true", "false"),
        default="true",
        help="whether each set must have as many utterances as the corpus",
    )
    parser.add_argument(
        "--num_jobs", type=int, default=8, help="audio files read in parallel"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, write."""

    def prepare() -> None:
        if args.manifest_dir:
            parts = librispeech.read_manifests(args.manifest_dir, args.parts)
        else:
            parts = librispeech.read_corpus(args.corpus_dir, args.parts, args.num_jobs)
        librispeech.write_sets(
            parts, args.output_dir, check_counts=args.check_counts == "true"
        )

    options = {name: value for name, value in vars(args).items() if name != "num_jobs"}
    once(args.output_dir, options, prepare)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
