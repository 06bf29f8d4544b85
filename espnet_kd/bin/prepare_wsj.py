"""Make data/{train_si284,test_dev93,test_eval92} of egs/wsj from WSJ0 and WSJ1."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.corpora.corpus import once, write_set
from espnet_kd.corpora.wsj import SUBSETS, TRANSCRIPTS, prepare_wsj
from espnet_kd.corpora.wsj_text import non_linguistic
from espnet_kd.data.files import write_text


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("prepare_wsj", __doc__)
    parser.add_argument(
        "--wsj0_dir",
        type=Path,
        required=True,
        help="WSJ0 (LDC93S6A or LDC93S6B), with the discs 11-1.1 to 11-15.1",
    )
    parser.add_argument(
        "--wsj1_dir",
        type=Path,
        required=True,
        help="WSJ1 (LDC94S13A or LDC94S13B), with the discs 13-1.1 to 13-34.1",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("data"), help="the recipe's data/"
    )
    parser.add_argument(
        "--transcripts",
        choices=TRANSCRIPTS,
        default="dot",
        help="dot: as in ESPnet's recipe; lsn: words without noise; ptx: the prompts",
    )
    parser.add_argument(
        "--check_counts",
        choices=("true", "false"),
        default="true",
        help="false: accept a part of the corpus",
    )
    parser.add_argument(
        "--num_jobs", type=int, default=4, help="audio headers read in parallel"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Prepare, write."""
    # Everything that determines the data, without the location of the corpus.
    options = {name: getattr(args, name) for name in ("transcripts", "check_counts")}
    once(args.output_dir, options, lambda: _prepare(args))


def _prepare(args: argparse.Namespace) -> None:
    check = args.check_counts == "true"
    manifests = prepare_wsj(
        args.wsj0_dir,
        args.wsj1_dir,
        transcripts=args.transcripts,
        partial=not check,
        num_jobs=args.num_jobs,
    )
    for name, sets in manifests.items():
        write_set(
            **sets,
            name=name,
            data_dir=args.output_dir,
            expected=SUBSETS[name].size if check else None,
        )
    texts = [segment.text for segment in manifests["train_si284"]["supervisions"]]
    symbols = "".join(f"{word}\n" for word in non_linguistic(texts))
    write_text(args.output_dir / "nlsyms.txt", symbols)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
