"""Estimate the costs of a recipe before it runs: disk, hours and memory of each stage.

    python -m espnet_kd.bin.plan --hours 100 --unlabelled_hours 860 \\
        --teacher_config conf/train_teacher.yaml \\
        --student_config conf/train_student.yaml --vocabulary 5000 \\
        --kd_config conf/kd/one_best_path.yaml --gpu a100 --ngpu 4

Run it in the folder of the training YAMLs. For the accuracy see docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.config.files import read_yaml
from espnet_kd.config.kd_conf import parse_kd_conf
from espnet_kd.config.losses import LATTICE_NODES, LatticeConf, LossConf, losses_of
from espnet_kd.config.presets import read_preset
from espnet_kd.planning import data_sizes, training
from espnet_kd.planning.machines import MACHINES
from espnet_kd.planning.model_costs import Model, Speech, of_config, of_size
from espnet_kd.planning.search import search_of
from espnet_kd.planning.stages import Recipe, plan
from espnet_kd.planning.tables import explained, table, targets_table
from espnet_kd.planning.training import Settings, Teaching, settings_of

MODELS = ("teacher", "student")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("plan", __doc__)
    parser.add_argument("--explain", action="store_true", help="print every formula")
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of a table"
    )

    data = parser.add_argument_group("data")
    hours = dict(type=float, metavar="H")
    data.add_argument("--hours", **hours, required=True, help="labelled audio")
    data.add_argument("--unlabelled_hours", **hours, default=0.0, help="without text")
    data.add_argument(
        "--teacher_hours", **hours, help="labelled audio of the teacher; None: --hours"
    )
    data.add_argument(
        "--eval_hours", **hours, default=20.0, help="half validation, half tests"
    )
    data.add_argument(
        "--speed_perturb_factors", type=float, nargs="*", default=[1.0], help="speeds"
    )
    data.add_argument(
        "--segments",
        action="store_true",
        help="audio is in segments, from pipes or at another rate: stage 2 writes it",
    )
    speech = Speech()
    data.add_argument("--fs", type=int, default=speech.rate, help="sampling rate, Hz")
    data.add_argument(
        "--seconds", type=float, default=speech.seconds, help="of the mean utterance"
    )
    data.add_argument(
        "--longest", type=float, default=speech.longest, help="utterance, seconds"
    )
    data.add_argument(
        "--labels",
        type=float,
        default=speech.labels,
        help="tokens per second: for English 4 in word pieces, 15 in letters",
    )
    data.add_argument(
        "--vocabulary", type=int, default=5000, help="tokens in the token list"
    )

    for name, number in ("teacher", "+"), ("student", None):
        group = parser.add_argument_group(
            name, f"give --{name}_config, or --{name}_parameters"
        )
        several = ", one for each" if number else ""
        group.add_argument(
            f"--{name}_config", type=Path, nargs=number, help=f"training YAML{several}"
        )
        group.add_argument(
            f"--{name}_parameters",
            type=float,
            nargs=number,
            help=f"for example 95e6{several}",
        )
        group.add_argument(
            f"--{name}_width", type=int, default=512, help="of its layers"
        )
        group.add_argument(
            f"--{name}_joint", type=int, default=0, help="joint network; 0: none"
        )
    trained = parser.add_argument_group(
        "training", "None: from the training YAML, else ESPnet's default"
    )
    trained.add_argument("--max_epoch", type=int, help="of every training")
    trained.add_argument("--batch_bins", type=int, help="of every training, numel")
    trained.add_argument(
        "--use_amp", type=_bool, metavar="BOOL", help="of every training"
    )

    kd = parser.add_argument_group("distillation")
    kd.add_argument("--kd_config", help="preset or own file: targets and losses")
    kd.add_argument("--sparse_config", help="of stage 11; None: it does not run")
    kd.add_argument("--nbest", type=int, default=4, help="hypotheses of stage 6")
    for name, whose in ("inference_config", "student"), (
        "teacher_inference_config",
        "teacher",
    ):
        kd.add_argument(f"--{name}", type=Path, help=f"decoding YAML of the {whose}")

    machine = parser.add_argument_group("machines")
    machine.add_argument("--gpu", choices=list(MACHINES), default="v100", help="type")
    machine.add_argument("--ngpu", type=int, default=1, help="GPUs of a training")
    machine.add_argument("--nj", type=int, default=32, help="jobs on CPU cores")
    machine.add_argument(
        "--gpu_inference",
        type=_bool,
        metavar="BOOL",
        default=False,
        help="decode on GPUs",
    )
    machine.add_argument(
        "--utilisation",
        type=float,
        default=training.UTILISATION,
        help="of the GPU's peak rate during matrix products",
    )
    return parser


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text}: must be true or false")
    return text == "true"


def run(args: argparse.Namespace) -> None:
    """Estimate, print."""
    recipe = recipe_of(args)
    stages = plan(recipe)
    targets = data_sizes.soft_targets(
        data_sizes.perturbed(recipe.labelled, recipe.factors) + recipe.unlabelled,
        recipe.speech,
        recipe.teachers[0].frame_rate,
    )
    if args.json:
        print(json.dumps(_record(recipe, stages, targets), indent=2))
        return
    print(table(recipe, stages))
    print(targets_table(targets))
    if args.explain:
        print(explained(stages))


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe described by the command line."""
    if min(args.hours, args.seconds, args.utilisation) <= 0:
        raise ValueError("--hours, --seconds and --utilisation must be above 0")
    longest = max(args.longest, args.seconds)
    speech = Speech(args.fs, args.seconds, longest, args.labels)
    teachers, (student,) = (_models(args, name, speech) for name in MODELS)
    configs = args.teacher_config or [None] * len(teachers)
    preset = read_preset(args.kd_config) if args.kd_config else {}
    sets = preset.get("kd_set") or {}
    sparse = sparse_teaching = None
    if args.sparse_config:
        given = read_preset(args.sparse_config)
        sparse = _settings({**_read(configs[0]), **(given.get("training") or {})}, args)
        sparse_teaching = _teaching(given, teachers[:1])
    hours = 3600
    taught = args.hours if args.teacher_hours is None else args.teacher_hours
    return Recipe(
        labelled=args.hours * hours,
        unlabelled=args.unlabelled_hours * hours,
        teacher_labelled=taught * hours,
        evaluated=args.eval_hours * hours,
        factors=args.speed_perturb_factors or [1.0],
        is_whole=not args.segments,
        speech=speech,
        teachers=teachers,
        student=student,
        teacher_settings=[_settings(_read(each), args) for each in configs],
        student_settings=_settings(_read(args.student_config), args),
        gpu=MACHINES[args.gpu],
        ngpu=args.ngpu,
        jobs=args.nj,
        gpu_inference=args.gpu_inference,
        utilisation=args.utilisation,
        labelled_targets=sets.get("labelled_targets", "reference"),
        nbest=sets.get("nbest", 1),
        kept_nbest=args.nbest,
        search=search_of(_read(args.inference_config)),
        teacher_search=search_of(_read(args.teacher_inference_config)),
        teaching=_teaching(preset, teachers),
        sparse=sparse,
        sparse_teaching=sparse_teaching,
    )


def _models(args: argparse.Namespace, name: str, speech: Speech) -> list[Model]:
    """The student, or all teachers."""
    config, parameters, width, joint = (
        getattr(args, f"{name}_{field}")
        for field in ("config", "parameters", "width", "joint")
    )
    if (config is None) == (parameters is None):
        raise ValueError(f"give either --{name}_config or --{name}_parameters")
    if parameters is not None:
        return [of_size(x, width, args.vocabulary, joint) for x in _list(parameters)]
    return [of_config(x, args.vocabulary, speech) for x in _list(config)]


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _read(config: str | Path | None) -> dict:
    return {} if config is None else read_yaml(config)


def _settings(config: dict, args: argparse.Namespace) -> Settings:
    settings = settings_of(config)
    if args.batch_bins is not None:
        settings = replace(settings, batch_type="numel", batch_bins=args.batch_bins)
    given = {"max_epoch": args.max_epoch, "use_amp": args.use_amp}
    return replace(settings, **{k: v for k, v in given.items() if v is not None})


def _teaching(preset: dict, teachers: list[Model]) -> Teaching | None:
    """The teachers that run during training, and the use of them, if any."""
    conf = parse_kd_conf(preset.get("kd_conf") or {})
    if not conf.losses and not conf.hidden:
        return None
    reads = sum(max(map(_reads, losses_of(entry))) for entry in conf.losses)
    return Teaching(tuple(teachers), reads, lean=conf.lean_joint is not False)


def _reads(loss: LossConf) -> int:
    """How often a loss reads the teacher's lattice."""
    if loss.nodes not in (*LATTICE_NODES, "sequence"):
        return 0
    # Losses over all classes also read it in the backward pass.
    return 2 if isinstance(loss, LatticeConf) and loss.classes == "full" else 1


def _record(recipe: Recipe, stages: list, targets: list) -> dict:
    return {
        "recipe": asdict(recipe),
        "stages": [{**asdict(s), "wall": s.wall} for s in stages],
        "stored_targets": [
            {"name": t.name, "bytes": t.size.value, "formula": t.size.formula}
            for t in targets
        ],
    }


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
