"""Compare systems on one test set: error rates, their confidence, sizes and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_text
from espnet_kd.report.costs import ModelSize, Weights
from espnet_kd.report.curves import Curve, plot_curves
from espnet_kd.report.layers import layer_table
from espnet_kd.report.render import as_json, markdown, plot
from espnet_kd.report.scoring import ScoredSet, read_text, score
from espnet_kd.report.summary import Roles, System, summarise


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("report", __doc__)
    parser.add_argument(
        "--ref", required=True, help="Kaldi text file of the test set's references"
    )
    parser.add_argument(
        "--hyp",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "TEXT"),
        help="a system and its hypotheses: a Kaldi text file for each run (seed) of "
        "it; give the option once per system",
    )
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PTH"),
        help="the model file of a system, to count its parameters; where many of them "
        "are zero, its layers and multiply-adds too, with the config.yaml beside it",
    )
    parser.add_argument(
        "--curve",
        nargs="+",
        action="append",
        default=[],
        metavar=("LABEL", "NAME"),
        help="a line through the systems of these names in a plot of error rate "
        "against sparsity, <output>_sparsity.png; give the option once per line",
    )
    parser.add_argument(
        "--teacher", help="system whose size the others are compared with"
    )
    parser.add_argument(
        "--baseline", help="system whose error rate the others should beat"
    )
    parser.add_argument(
        "--ceiling", help="system at the far end of the gap to be closed"
    )
    parser.add_argument(
        "--unit", choices=("word", "char"), default="word", help="WER or CER"
    )
    parser.add_argument(
        "--scorer",
        choices=("kaldialign", "sclite"),
        default="kaldialign",
        help="aligner",
    )
    parser.add_argument(
        "--resamples", type=int, default=10_000, help="number of bootstrap resamples"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="share that the interval covers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--output",
        type=Path,
        help="Markdown file; the same name with .json, and with .png where a --model "
        "is given, is written beside it",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Score, compare, print the table, write the files. ``args``: see `get_parser`."""
    if not 0 < args.confidence < 1 or args.resamples < 1:
        raise ValueError("--confidence lies between 0 and 1, --resamples is 1 or more")
    roles = Roles(args.teacher, args.baseline, args.ceiling)
    refs = read_text(args.ref)
    names = [name for name, *_ in args.hyp]
    for name, path in args.model:
        if name not in names:
            raise ValueError(f"--model {name} {path}: there is no --hyp {name}")
    curves = _curves(args)
    sizes, is_sparse = _sizes(dict(args.model)) if args.model else ({}, False)
    systems = []
    for name, *paths in args.hyp:
        if not paths:
            raise ValueError(f"--hyp {name}: a name and at least one text file, please")
        runs = [_scored(refs, path, args) for path in paths]
        systems.append(System(name, runs, sizes.get(name)))
    rows = summarise(systems, roles, args.resamples, args.seed, args.confidence)

    # Unless one is sparse, no ESPnet model needs to be built.
    weights = _weights(dict(args.model)) if is_sparse or curves else {}
    sparse = {name: each for name, each in weights.items() if each.is_sparse}
    shown = weights if sparse else {}
    table = markdown(
        rows, roles, args.unit, args.confidence, args.resamples, weights=shown
    )
    table += "".join("\n" + layer_table(name, each) for name, each in sparse.items())
    print(table, end="")
    if args.output is None:
        return
    settings = {k: getattr(args, k) for k in ("ref", "unit", "scorer", "confidence")}
    settings.update(resamples=args.resamples, seed=args.seed)
    data = as_json(rows, roles, shown, **settings)
    write_text(args.output, table)
    write_text(args.output.with_suffix(".json"), data + "\n")
    if sizes:
        plot(rows, args.output.with_suffix(".png"), args.unit)
    if curves:
        sparsity = {name: each.sparsity for name, each in weights.items()}
        path = args.output.with_name(f"{args.output.stem}_sparsity.png")
        plot_curves(rows, sparsity, curves, path, args.unit)


def _curves(args: argparse.Namespace) -> list[Curve]:
    if args.curve and args.output is None:
        raise ValueError("--curve: the plot lies beside the report, give --output")
    known = {"--hyp": args.hyp, "--model": args.model}
    for label, *names in args.curve:
        if not names:
            raise ValueError(f"--curve {label}: a label and at least one name, please")
        for name in names:
            for option, given in known.items():
                if name not in [each for each, *_ in given]:
                    raise ValueError(f"--curve {label}: there is no {option} {name}")
    return [Curve(label, names) for label, *names in args.curve]


def _sizes(models: dict[str, str]) -> tuple[dict[str, ModelSize], bool]:
    """The size of each model, and whether one of them is sparse."""
    from espnet_kd.report.size import read_tensors, size_of
    from espnet_kd.report.weights import stored_weights

    sizes, is_sparse = {}, False
    for name, path in models.items():
        tensors = read_tensors(path)
        sizes[name] = size_of(tensors)
        is_sparse |= stored_weights(tensors).is_sparse
    return sizes, is_sparse


def _weights(models: dict[str, str]) -> dict[str, Weights]:
    from espnet_kd.report.weights import model_weights

    bar = tqdm(models.items(), "multiply-adds", unit="model", disable=None)
    return {name: model_weights(path) for name, path in bar}


def _scored(refs: dict[str, str], path: str, args: argparse.Namespace) -> ScoredSet:
    hyps = read_text(path)
    try:
        return score(refs, hyps, args.unit, args.scorer)
    except ValueError as error:
        raise ValueError(f"{path} against {args.ref}: {error}") from error


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
