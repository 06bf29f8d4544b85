#!/usr/bin/env python3
"""Read a KD preset (conf/kd/*.yaml): options of kd_set, or a training configuration.

A preset has two sections: `kd_set` holds options of the command of that name, `kd_conf`
the KD losses of training.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import yaml

from espnet_kd.student.config import parse_kd_conf

SECTIONS = ("kd_set", "kd_conf")


def read_preset(path: str) -> dict:
    """The sections of a preset.

    Raises:
        ValueError: a section is not known or the losses are not valid.
    """
    preset = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    for name in preset:
        if name not in SECTIONS:
            raise ValueError(f"{path}: {name}: no such section; known: {SECTIONS}")
    try:
        parse_kd_conf(preset.get("kd_conf") or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return preset


def options(args: argparse.Namespace) -> None:
    """Print the section `kd_set` as command-line options."""
    section = read_preset(args.kd_config).get("kd_set") or {}
    given = ((name, value) for name, value in section.items() if value is not None)
    print(" ".join(f"--{name} {value}" for name, value in given))


def merge(args: argparse.Namespace) -> None:
    """Write the student's training configuration with the preset's `kd_conf`."""
    config = yaml.safe_load(Path(args.asr_config).read_text(encoding="utf-8")) or {}
    kd_conf = read_preset(args.kd_config).get("kd_conf") or {}
    config["kd_conf"] = {**(config.get("kd_conf") or {}), **kd_conf}
    output = Path(args.output_file)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(
        f"# {args.asr_config} with kd_conf of {args.kd_config}\n"
        + yaml.safe_dump(config, sort_keys=False),
        encoding="utf-8",
    )
    os.replace(temporary, output)


def get_parser() -> argparse.ArgumentParser:
    """The parser of both commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (options, merge):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--kd_config", required=True, help="Preset file")
        if run is merge:
            command.add_argument("--asr_config", required=True)
            command.add_argument("--output_file", required=True)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Parse and run."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    try:
        args.run(args)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SystemExit(f"preset: {error}") from error


if __name__ == "__main__":
    main()
