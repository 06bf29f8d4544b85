"""Find the faults of a run of kd.sh before its first stage; called by kd.sh.

    python -m espnet_kd.bin.check wanted="9 10" asr_config=conf/train.yaml ...

Prints every fault to stderr and exits with 1 if there are any. With --dry_run it also
prints the table of the stages, with an estimate of their costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from espnet_kd.bin import kd_set
from espnet_kd.bin.command import command, new_parser
from espnet_kd.bin.preset import OF_ONE_RUN
from espnet_kd.config.presets import read_preset
from espnet_kd.models.config import read_config
from espnet_kd.planning.chain import Chain
from espnet_kd.planning.checks import faults
from espnet_kd.planning.configurations import or_none
from espnet_kd.planning.outlook import outlook, planner_options

if TYPE_CHECKING:
    from espnet_kd.planning.stages import Stage

LISTS = ("option", "state", "fault")


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("check", __doc__)
    parser.add_argument("--dry_run", action="store_true", help="print the table too")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME=VALUE",
        help="values resolved by kd.sh, see espnet_kd/planning/chain.py",
    )
    return parser


def chain_of(words: list[str]) -> Chain:
    """The run described by NAME=VALUE words.

    Raises:
        ValueError: a name is unknown.
    """
    known = {each.name for each in fields(Chain)}
    values: dict = {name: [] for name in LISTS}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise ValueError(f"{name}: no such name; known: {sorted(known)}")
        if name in LISTS:
            values[name].append(value)
        else:
            values[name] = value
    return Chain(**values)


def estimate(chain: Chain) -> tuple[list[Stage], str]:
    """The planner's stages, if possible, and a line on their accuracy or the reason for
    their absence. It builds the models, so it imports torch."""
    messages = StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(messages):
            words = planner_options(chain, _teacher_configs(chain, Path(folder)))
            from espnet_kd.bin import plan

            args = plan.get_parser().parse_args(words)
            stages = plan.plan(plan.recipe_of(args))
    # Any error may come from a faulty configuration; faults are still reported.
    except (Exception, SystemExit) as error:
        reason = messages.getvalue().strip().split("\n")[-1]  # of a parser that exits
        if not isinstance(error, SystemExit):
            reason = str(error) or type(error).__name__
        return [], f"No estimate: {reason}"
    training = "hours of training on CPUs are not estimated"
    if args.ngpu and int(chain.ngpu):
        training = f"on {args.ngpu} x {args.gpu}"
    return stages, (
        f"Hours and disk are estimates within a factor of two ({training}); for more "
        "run python -m espnet_kd.bin.plan"
    )


def _teacher_configs(chain: Chain, folder: Path) -> list[Path]:
    """A training configuration of each teacher: its own, or the model's part of a
    trained one's config.yaml."""
    configs = []
    for index, teacher in enumerate(chain.teachers):
        if index == 0 and chain.teacher_asr_config:
            configs.append(Path(chain.teacher_asr_config))
            continue
        config = read_config(f"{teacher}/config.yaml")
        config = {k: v for k, v in config.items() if not OF_ONE_RUN.fullmatch(k)}
        configs.append(folder / f"{Path(teacher).name}.yaml")
        configs[-1].write_text(yaml.safe_dump(config), encoding="utf-8")
    if not configs:
        raise ValueError("no teacher is given")
    return configs


def kd_set_faults(chain: Chain) -> list[str]:
    """Faults that `espnet_kd.bin.kd_set` would find in its options in stage 8."""
    preset = or_none(lambda: read_preset(chain.kd_config))
    if not chain.asks_for(8) or preset is None:
        return []
    section = (preset.get("kd_set") or {}).items()
    words = [str(x) for k, v in section if v is not None for x in (f"--{k}", v)]
    words += chain.kd_set_args.split()
    data = ["--labelled_data_dir", "-", "--output_dir", chain.kd_data]
    messages = StringIO()
    try:
        with redirect_stderr(messages):
            kd_set.check(kd_set.get_parser().parse_args([*words, *data]))
    except ValueError as error:
        return [f"--kd_config {chain.kd_config}, --kd_set_args: {error}"]
    except SystemExit:
        reason = messages.getvalue().strip().split("error: ")[-1]
        return [f"--kd_config {chain.kd_config}, --kd_set_args: {reason}"]
    return []


def run(args: argparse.Namespace) -> int:
    """Check and print; 1 if a fault is found."""
    chain = chain_of(args.names)
    found = [*faults(chain), *kd_set_faults(chain)]
    if args.dry_run:
        plan, note = estimate(chain)
        print(outlook(chain, plan), note, sep="\n")
    for fault in found:
        print(f"Error: {fault}", file=sys.stderr)
    return 1 if found else 0


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
