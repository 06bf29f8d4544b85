"""Build the KD training set from decoded shards: a data folder for ESPnet's training.

    python -m espnet_kd.bin.kd_set --labelled_data_dir dump/raw/train_100 \\
        --unlabelled exp/kd/hyps.*.jsonl --nbest 4 --weights error_weighted --beta 2 \\
        --max_expected_wer 0.3 --output_dir dump/raw/train_kd

Writes wav.scp, text, utt2spk, spk2utt, utt2num_samples, feats_type, kd_weight (for
ESPnet's data type text_float), kd_cuts.jsonl.gz and stats.json; with --shape_dir also
the shape files of its training, so that a statistics stage is not needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_folder
from espnet_kd.data.kaldi import cuts_from_kaldi, read_table
from espnet_kd.targets import fingerprint as fp
from espnet_kd.targets.hypotheses import read_cuts
from espnet_kd.targets.kd_set import STATS, KDSet, KDSetSpec, build
from espnet_kd.targets.selection import WEIGHTS, Filters, Weighting
from espnet_kd.targets.shapes import Tokenization, shape_files, write_shapes

TABLES = ("wav.scp", "segments", "text", "utt2spk", "utt2num_samples")


def none_or_str(text: str) -> str | None:
    """None for "none", ESPnet's form of an absent value."""
    return None if text.lower() in ("none", "null", "") else text


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("kd_set", __doc__)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--labelled",
        type=Path,
        nargs="+",
        default=[],
        help="shards of teacher_decode with references",
    )
    data.add_argument(
        "--unlabelled",
        type=Path,
        nargs="+",
        default=[],
        help="shards of teacher_decode; their text, if any, is not used",
    )
    data.add_argument(
        "--labelled_data_dir",
        type=Path,
        nargs="+",
        default=[],
        help="Kaldi data folders with references that need no decoding (weight 1)",
    )
    data.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    data.add_argument(
        "--reference_text",
        type=Path,
        help="Kaldi text of unlabelled utterances, only to print the pseudo-label WER",
    )
    targets = parser.add_argument_group("targets")
    targets.add_argument(
        "--labelled_targets",
        choices=("reference", "hypotheses", "both"),
        default="reference",
        help="training targets of --labelled utterances",
    )
    targets.add_argument(
        "--nbest", type=int, default=1, help="hypotheses per utterance"
    )
    targets.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="uniform",
        help="1/K; softmax over K of posterior_scale * score; or that times "
        "exp(-beta * WER), with the expected WER for unlabelled audio",
    )
    targets.add_argument(
        "--posterior_scale",
        type=float,
        help="0 is uniform; default: 1 with posterior, 0 with error_weighted",
    )
    targets.add_argument("--beta", type=float, default=1.0, help="for error_weighted")
    filters = parser.add_argument_group("filters of hypotheses (fractions, not %)")
    filters.add_argument("--max_wer", type=float, help="of hypotheses with a reference")
    filters.add_argument(
        "--max_expected_wer",
        type=float,
        help="of the others: posterior-weighted WER against the rest of the list",
    )
    filters.add_argument("--min_posterior", type=float, help="within the list")
    filters.add_argument(
        "--min_length_ratio",
        type=float,
        help="words per second / their median in the 1-best of all utterances",
    )
    filters.add_argument("--max_length_ratio", type=float, help="the upper bound")
    shapes = parser.add_argument_group("shape files for ESPnet training")
    shapes.add_argument("--shape_dir", type=Path, help="folder to write them to")
    shapes.add_argument("--token_list", type=none_or_str, help="of the student")
    shapes.add_argument(
        "--token_type",
        default="bpe",
        choices=("bpe", "char", "word", "phn"),
        help="as in asr.sh",
    )
    shapes.add_argument("--bpemodel", type=none_or_str, help="as in asr.sh")
    shapes.add_argument("--cleaner", type=none_or_str, help="as in asr.sh")
    shapes.add_argument("--g2p", type=none_or_str, help="as in asr.sh")
    shapes.add_argument(
        "--non_linguistic_symbols", type=none_or_str, help="nlsyms_txt of asr.sh"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Build the set unless it exists already, made from the same inputs."""
    check(args)
    tokenization = tokenization_of(args)
    options = describe(args)
    if is_done(args, options, tokenization):
        print(f"{args.output_dir}: exists already, made with the same options")
        return
    kd_set = KDSet(spec_of(args))
    with write_folder(args.output_dir) as new:
        stats = build(kd_set, new, options)
        # Before the folder is renamed: its stats.json means "complete".
        if tokenization is not None:
            write_shapes(args.shape_dir, kd_set.num_samples, kd_set.texts, tokenization)
    print(report(stats, args.output_dir))


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together, before anything is read."""
    if not (args.labelled or args.unlabelled or args.labelled_data_dir):
        raise ValueError("give --labelled, --unlabelled or --labelled_data_dir")
    if args.nbest < 1:
        raise ValueError(f"nbest={args.nbest}: must be at least 1")
    for name in (
        "beta",
        "posterior_scale",
        "max_wer",
        "max_expected_wer",
        "min_posterior",
        "min_length_ratio",
        "max_length_ratio",
    ):
        value = getattr(args, name)
        if value is not None and not value >= 0:
            raise ValueError(f"{name}={value}: must be a number of at least 0")
    if args.shape_dir is not None and args.token_list is None:
        raise ValueError("--shape_dir needs --token_list")
    if args.shape_dir is not None and args.token_type == "bpe" and not args.bpemodel:
        raise ValueError("--shape_dir with --token_type bpe needs --bpemodel")
    out = args.output_dir
    if out.exists() and not (out / STATS).is_file() and any(out.iterdir()):
        raise ValueError(
            f"{out}: exists and was not made by kd_set (no {STATS}); give another "
            "--output_dir"
        )


def tokenization_of(args: argparse.Namespace) -> Tokenization | None:
    """How texts become tokens, None without shape files."""
    if args.shape_dir is None:
        return None
    return Tokenization(
        token_type=args.token_type,
        token_list=args.token_list,
        bpemodel=args.bpemodel,
        cleaner=args.cleaner,
        g2p=args.g2p,
        non_linguistic_symbols=args.non_linguistic_symbols,
    )


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Options, hashes of every input and the teachers, which determine the result."""
    options = {
        key: [str(v) for v in value] if isinstance(value, list) else value
        for key, value in vars(args).items()
    }
    options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    inputs = [*args.labelled, *args.unlabelled]
    for folder in args.labelled_data_dir:
        inputs += [folder / name for name in TABLES if (folder / name).is_file()]
    for path in (args.reference_text, args.token_list, args.bpemodel):
        inputs += [path] if path is not None else []
    options["inputs"] = {str(path): fp.hash_file(path) for path in inputs}
    options["teachers"] = {
        name: fp.common_part(getattr(args, name)) for name in ("labelled", "unlabelled")
    }
    options["versions"] = fp.code_versions()
    return options


def is_done(
    args: argparse.Namespace,
    options: dict[str, Any],
    tokenization: Tokenization | None,
) -> bool:
    """Whether the output exists, complete and made from the same inputs."""
    stats = args.output_dir / STATS
    if not stats.is_file():
        return False
    if tokenization is not None and not all(
        path.is_file() for path in shape_files(args.shape_dir, tokenization)
    ):
        return False
    old = json.loads(stats.read_text(encoding="utf-8"))["options"]
    return not list(fp.differences(old, json.loads(json.dumps(options))))


def spec_of(args: argparse.Namespace) -> KDSetSpec:
    """The set described by the options."""
    true_texts = args.reference_text and dict(read_table(args.reference_text))
    return KDSetSpec(
        labelled=[read_cuts(path) for path in args.labelled],
        unlabelled=[read_cuts(path) for path in args.unlabelled],
        references=[cuts_from_kaldi(path) for path in args.labelled_data_dir],
        labelled_targets=args.labelled_targets,
        nbest=args.nbest,
        filters=Filters(
            max_wer=args.max_wer,
            max_expected_wer=args.max_expected_wer,
            min_posterior=args.min_posterior,
            min_length_ratio=args.min_length_ratio,
            max_length_ratio=args.max_length_ratio,
        ),
        weighting=Weighting(args.weights, args.posterior_scale, args.beta),
        true_texts=true_texts,
    )


def report(stats: dict[str, Any], output_dir: Path) -> str:
    """Counts after each filter, weights and WER of the pseudo-labels, as text."""
    lines = [f"{'':12}{'left after':18}{'targets':>10}{'utterances':>12}{'hours':>9}"]
    for group, rows in stats["steps"].items():
        for step, row in rows.items():
            lines.append(
                f"{group:12}{step:18}{row['targets']:>10}{row['utterances']:>12}"
                f"{row['hours']:>9.2f}"
            )
            group = ""
    lines += ["", "weight    targets"]
    counts = stats["weight_histogram"]
    for name, count in counts.items():
        bar = "#" * round(40 * count / max(counts.values()))
        lines.append(f"{name:8}{count:>9} {bar}".rstrip())
    for when, rate in stats["pseudo_label_wer"].items():
        if rate is not None:
            lines.append(f"WER of the pseudo-labels {when} the filters: {rate:.2%}")
    lines.append(f"{output_dir}: {stats['targets']} targets")
    return "\n".join(lines)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
