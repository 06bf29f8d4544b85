"""Write the scored words of a Kaldi text file, selected as by asr.sh.

The recipe's local/wer_output_filter (Kaldi) may filter further.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_text
from espnet_kd.report.scoring import read_text
from espnet_kd.report.words import kaldi_lines, read_symbols, scored_words


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("scored_text", __doc__)
    parser.add_argument("--text", required=True, help="Kaldi text file")
    parser.add_argument("--output", type=Path, required=True, help="the same, filtered")
    parser.add_argument("--cleaner", default="none", help="ESPnet's text cleaner")
    parser.add_argument(
        "--nlsyms_txt",
        default="none",
        help="file of words to leave out, one per line",
    )
    parser.add_argument(
        "--filter", help="program that filters the lines, e.g. wer_output_filter"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Read, filter, write."""
    cleaner, symbols = None, frozenset()
    if args.cleaner != "none":
        cleaner = args.cleaner
    if args.nlsyms_txt != "none":
        symbols = read_symbols(args.nlsyms_txt)
    texts = scored_words(read_text(args.text), cleaner, symbols, args.filter)
    write_text(args.output, kaldi_lines(texts))


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
