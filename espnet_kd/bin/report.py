"""Compare systems on a test set: error rates, their confidence, sizes and plots.

Systems are given by their hypotheses (--ref, --hyp, --model) or, if decoded by kd.sh,
by their experiment folders (--system), with a table for each test set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_text
from espnet_kd.report.costs import ModelSize, Weights
from espnet_kd.report.curves import Curve, plot_curves
from espnet_kd.report.decoded import add_system_option, find_decoded, systems_of
from espnet_kd.report.layers import layer_table
from espnet_kd.report.render import as_json, markdown, plot
from espnet_kd.report.scoring import ScoredSet, read_text, score
from espnet_kd.report.summary import Roles, System, summarise


def get_parser() -> argparse.ArgumentParser:
    parser = new_parser("report", __doc__)
    parser.add_argument("--ref", help="Kaldi text file of the test set's references")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--hyp",
        nargs="+",
        action="append",
        default=[],
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
        help="the model file of a system, to count its parameters; if many of them are "
        "zero, also its layers and multiply-adds, with the config.yaml beside it",
    )
    add_system_option(choice)
    parser.add_argument(
        "--inference_tag",
        default="decode",
        help="with --system: name of the decoding in each experiment, as in kd.sh",
    )
    parser.add_argument(
        "--inference_asr_model",
        default="valid.acc.ave.pth",
        help="with --system: the decoded checkpoint of each experiment; that of the "
        "first run is counted as with --model",
    )
    parser.add_argument(
        "--data_dir",
        default="dump/raw",
        help="with --system: folder of the references, <data_dir>/<set>/text",
    )
    parser.add_argument(
        "--curve",
        nargs="+",
        action="append",
        default=[],
        metavar=("LABEL", "NAME"),
        help="a line through the named systems in a plot of error rate against "
        "sparsity, <output>_sparsity.png; give the option once per line",
    )
    parser.add_argument(
        "--teacher", help="system with whose size the others are compared"
    )
    parser.add_argument(
        "--baseline", help="system whose error rate the others should improve"
    )
    parser.add_argument("--ceiling", help="system that defines a closed gap")
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
        "--confidence", type=float, default=0.95, help="coverage of the interval"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument(
        "--output",
        type=Path,
        help="Markdown file; .json and, with models, .png are written beside it. {set} "
        "in its name becomes the name of the test set",
    )
    return parser


class Comparison(NamedTuple):
    """Systems on a test set.

    Attributes:
        ref: its references.
        hyps: name of a system -> the hypotheses of its runs.
        models: name -> its checkpoint.
        roles, curves: of these systems.
        output: the Markdown file, or None.
    """

    ref: str
    hyps: dict[str, list[str]]
    models: dict[str, str]
    roles: Roles
    curves: list[Curve]
    output: Path | None


def run(args: argparse.Namespace) -> None:
    """Score, compare, print tables, write the files. ``args``: see `get_parser`."""
    if not 0 < args.confidence < 1 or args.resamples < 1:
        raise ValueError("--confidence must be between 0 and 1, --resamples at least 1")
    if not args.system:
        _report(_of_files(args), args)
        return
    for test_set, comparison in _of_experiments(args).items():
        print(f"{test_set}:\n")
        _report(comparison, args)


def _of_files(args: argparse.Namespace) -> Comparison:
    """The systems given by --ref, --hyp and --model."""
    if args.ref is None:
        raise ValueError("--ref: the references are needed with --hyp")
    names = [name for name, *_ in args.hyp]
    for name, path in args.model:
        if name not in names:
            raise ValueError(f"--model {name} {path}: --hyp {name} is missing")
    for name, *paths in args.hyp:
        if not paths:
            raise ValueError(f"--hyp {name}: needs a name and at least one text file")
        if names.count(name) > 1:
            raise ValueError(f"two systems are called {name}")
    return Comparison(
        ref=args.ref,
        hyps={name: paths for name, *paths in args.hyp},
        models=dict(args.model),
        roles=Roles(args.teacher, args.baseline, args.ceiling),
        curves=_curves(args),
        output=args.output,
    )


def _of_experiments(args: argparse.Namespace) -> dict[str, Comparison]:
    """The systems given by --system, for each decoded test set."""
    if args.ref is not None or args.model:
        raise ValueError(
            "--ref, --model: only used with --hyp; with --system give --data_dir and "
            "--inference_asr_model"
        )
    systems = systems_of(args.system)
    roles = Roles(args.teacher, args.baseline, args.ceiling)
    for role, name in vars(roles).items():
        if name is not None and name not in systems:
            raise ValueError(f"--{role} {name}: --system {name} is missing")
    curves = _curves(args)
    found = find_decoded(systems, args.inference_tag)
    if len(found) > 1 and args.output and "{set}" not in str(args.output):
        raise ValueError(
            f"--output {args.output}: {', '.join(found)} were decoded, and each needs "
            "its own file; put {set} into the name"
        )
    models = {x: f"{exps[0]}/{args.inference_asr_model}" for x, exps in systems.items()}
    return {
        test_set: Comparison(
            ref=f"{args.data_dir}/{test_set}/text",
            hyps={name: list(map(str, paths)) for name, paths in texts.items()},
            models={name: models[name] for name in texts},
            roles=_roles_among(texts, roles),
            curves=_curves_among(texts, curves),
            output=_output_of(test_set, args.output),
        )
        for test_set, texts in found.items()
    }


def _roles_among(names: Collection[str], roles: Roles) -> Roles:
    """The roles without omitted systems; a ceiling needs a baseline."""
    kept = {role: name for role, name in vars(roles).items() if name in names}
    if "baseline" not in kept:
        kept.pop("ceiling", None)
    return Roles(**kept)


def _curves_among(names: Collection[str], curves: list[Curve]) -> list[Curve]:
    kept = [Curve(c.label, [n for n in c.names if n in names]) for c in curves]
    return [curve for curve in kept if curve.names]


def _output_of(test_set: str, output: Path | None) -> Path | None:
    if output is None:
        return None
    return Path(str(output).replace("{set}", test_set.replace("/", "_")))


def _report(this: Comparison, args: argparse.Namespace) -> None:
    """Print a table, and write the files of --output."""
    refs = read_text(this.ref)
    sizes, is_sparse = _sizes(this.models) if this.models else ({}, False)
    systems = []
    for name, paths in this.hyps.items():
        runs = [_scored(refs, path, this.ref, args) for path in paths]
        systems.append(System(name, runs, sizes.get(name)))
    rows = summarise(systems, this.roles, args.resamples, args.seed, args.confidence)

    # ESPnet models are only built if one is sparse.
    weights = _weights(this.models) if is_sparse or this.curves else {}
    sparse = {name: each for name, each in weights.items() if each.is_sparse}
    shown = weights if sparse else {}
    table = markdown(
        rows, this.roles, args.unit, args.confidence, args.resamples, weights=shown
    )
    table += "".join("\n" + layer_table(name, each) for name, each in sparse.items())
    print(table, end="")
    if this.output is None:
        return
    names = ("unit", "scorer", "confidence", "resamples", "seed")
    settings = dict(ref=this.ref, **{name: getattr(args, name) for name in names})
    data = as_json(rows, this.roles, shown, **settings)
    write_text(this.output, table)
    write_text(this.output.with_suffix(".json"), data + "\n")
    if sizes:
        plot(rows, this.output.with_suffix(".png"), args.unit)
    if this.curves:
        sparsity = {name: each.sparsity for name, each in weights.items()}
        path = this.output.with_name(f"{this.output.stem}_sparsity.png")
        plot_curves(rows, sparsity, this.curves, path, args.unit)


def _curves(args: argparse.Namespace) -> list[Curve]:
    if args.curve and args.output is None:
        raise ValueError(
            "--curve: the plot is written beside the report; give --output"
        )
    known = {"--hyp": args.hyp, "--model": args.model}
    if args.system:
        known = {"--system": args.system}
    for label, *names in args.curve:
        if not names:
            raise ValueError(f"--curve {label}: needs a label and at least one name")
        for name in names:
            for option, given in known.items():
                if name not in [each for each, *_ in given]:
                    raise ValueError(f"--curve {label}: {option} {name} is missing")
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


def _scored(
    refs: dict[str, str], path: str, ref: str, args: argparse.Namespace
) -> ScoredSet:
    hyps = read_text(path)
    try:
        return score(refs, hyps, args.unit, args.scorer)
    except ValueError as error:
        raise ValueError(f"{path} against {ref}: {error}") from error


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
