"""Make data/{train_nodup,train_dev,eval2000} of egs/swbd from the LDC's corpora."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from espnet_kd.bin.command import command, new_parser
from espnet_kd.corpora.corpus import once, write_set
from espnet_kd.corpora.eval2000 import prepare_eval2000
from espnet_kd.corpora.switchboard import DEV_SIZE, prepare_switchboard
from espnet_kd.corpora.switchboard_text import NOISES, fisher_text
from espnet_kd.corpora.telephone import files_below
from espnet_kd.data.files import write_text
from espnet_kd.data.kaldi import write_table
from espnet_kd.report.sclite import HOW_TO_GET, find_sclite


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("prepare_switchboard", __doc__)
    parser.add_argument(
        "--audio_dir", type=Path, required=True, help="Switchboard-1, LDC97S62"
    )
    parser.add_argument(
        "--transcripts_dir",
        type=Path,
        required=True,
        help="Mississippi State's transcripts, with swb_ms98_transcriptions/",
    )
    parser.add_argument(
        "--eval2000_dir", type=Path, required=True, help="audio, LDC2002S09"
    )
    parser.add_argument(
        "--eval2000_transcripts_dir", type=Path, required=True, help="LDC2002T43"
    )
    parser.add_argument(
        "--fisher_dir",
        type=Path,
        nargs="*",
        default=[],
        help="transcripts of Fisher, LDC2004T19 and LDC2005T19, as text for an LM",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("data"), help="the recipe's data/"
    )
    parser.add_argument(
        "--num_dev", type=int, default=DEV_SIZE, help="utterances of train_dev"
    )
    parser.add_argument(
        "--check_counts",
        choices=("true", "false"),
        default="true",
        help="false: accept a part of the corpora",
    )
    parser.add_argument(
        "--num_jobs", type=int, default=8, help="calls read in parallel"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Prepare, write."""
    if find_sclite() is None:  # reported now, as scoring comes after days of training
        logging.warning(
            f"sclite: not found; needed to score eval2000. Install it: {HOW_TO_GET}"
        )
    # Without the corpora's folders, so that a later run need not name them.
    options = dict(num_dev=args.num_dev, check_counts=args.check_counts)
    lm_text = args.output_dir / "local" / "other_text" / "text"
    once(args.output_dir, options, lambda: _prepare(args))
    if args.fisher_dir:
        fisher = dict(fisher_dir=args.fisher_dir)
        once(lm_text.parent, fisher, lambda: _write_fisher(args.fisher_dir, lm_text))


def _prepare(args: argparse.Namespace) -> None:
    output: Path = args.output_dir
    common = dict(
        wav_dir=output / "wav",
        partial=args.check_counts == "false",
        num_jobs=args.num_jobs,
    )
    sets = prepare_switchboard(
        args.audio_dir, args.transcripts_dir, dev_size=args.num_dev, **common
    )
    for name, manifests in sets.items():
        write_set(**manifests, name=name, data_dir=output)
    test = prepare_eval2000(args.eval2000_dir, args.eval2000_transcripts_dir, **common)
    write_set(test.recordings, test.supervisions, "eval2000", output)
    _write(output / "eval2000" / "stm", test.stm)
    _write(output / "eval2000" / "glm", test.glm)
    _write(output / "nlsyms.txt", "".join(f"{noise}\n" for noise in NOISES))


def _write(path: Path, text: str) -> None:
    # Latin 1 as in the distribution, which sclite and the glm expect.
    write_text(path, text, "latin-1")


def _write_fisher(folders: list[Path], output: Path) -> None:
    """Write the text of all calls below the folders, under asr.sh's name for it."""
    # The transcripts are in data/trans, BBN's in data/bbn_orig under other names.
    paths = [path for f in folders for path in files_below(f, "fe_03_*.txt")]
    if not paths:
        raise FileNotFoundError(
            f"{' '.join(map(str, folders))}: no fe_03_*.txt below. Give the folders of "
            "LDC2004T19 and LDC2005T19, or leave FISHER empty."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(paths, desc="fisher", unit="call", disable=None)
    write_table(output, (row for path in bar for row in fisher_text(path)))


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
