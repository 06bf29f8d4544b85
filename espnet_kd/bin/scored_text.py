"""Write the words of a Kaldi text file that are scored, as asr.sh chooses them.

The recipe's local/wer_output_filter (Kaldi) may choose further.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.data.files import write_whole
from espnet_kd.report.scoring import read_text
from espnet_kd.report.words import kaldi_lines, read_symbols, scored_words


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_kd.bin.scored_text",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", required=True, help="Kaldi text file")
    parser.add_argument("--output", type=Path, required=True, help="the same, filtered")
    parser.add_argument("--cleaner", default="none", help="ESPnet's text cleaner")
    parser.add_argument(
        "--nlsyms_txt",
        default="none",
        help="file of words that are left out, one a line",
    )
    parser.add_argument(
        "--filter", help="program that the lines pass through, say wer_output_filter"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    cleaner, symbols = None, frozenset()
    try:
        if args.cleaner != "none":
            cleaner = args.cleaner
        if args.nlsyms_txt != "none":
            symbols = read_symbols(args.nlsyms_txt)
        texts = scored_words(read_text(args.text), cleaner, symbols, args.filter)
    except (ValueError, OSError) as error:
        sys.exit(f"scored_text: {error}")
    lines = kaldi_lines(texts)
    write_whole(args.output, lambda part: part.write_text(lines, encoding="utf-8"))


if __name__ == "__main__":
    main()
