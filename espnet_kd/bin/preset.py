#!/usr/bin/env python3
"""Read a KD preset (conf/kd/*.yaml): options of kd_set, or a training configuration.

A preset has up to three sections: `kd_set` holds options of the command of that name,
`kd_conf` the KD losses of training, `training` other options of training, which
override the model's own configuration.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys

import yaml

from espnet_kd.bin.command import Help, command, new_parser
from espnet_kd.config.files import read_yaml
from espnet_kd.config.presets import merged, read_preset
from espnet_kd.data.files import write_text
from espnet_kd.models.config import read_token_list

# Fields of a trained model's config.yaml that are specific to one run and its data.
OF_ONE_RUN = re.compile(
    "config|print_config|log_level|dry_run|output_dir|ngpu|dist_.*|local_rank"
    "|multiprocessing_distributed|collect_stats|write_collected_feats|resume|required"
    "|no_forward_run|pretrain_path|init_param|ignore_init_mismatch|fold_length|version"
    "|(train|valid)_(shape_file|data_path_and_name_and_type)|token_list|token_type"
    "|multiple_iterator|use_preprocessor|bpemodel|non_linguistic_symbols|cleaner|g2p"
    "|input_size|teacher_.*|kd_conf|distributed|wandb_(id|name)"
)


def options(args: argparse.Namespace) -> None:
    """Print the section `kd_set` as command-line options."""
    section = read_preset(args.kd_config).get("kd_set") or {}
    given = ((name, value) for name, value in section.items() if value is not None)
    print(" ".join(f"--{name} {value}" for name, value in given))


def merge(args: argparse.Namespace) -> None:
    """Write the student's training configuration with the preset's `kd_conf`."""
    _write_merged(read_yaml(args.asr_config), read_preset(args.kd_config), args)


def sparse(args: argparse.Namespace) -> None:
    """Write a configuration that continues the training of a model (--asr_config: its
    config.yaml) with the preset's `kd_conf`, which prunes."""
    config = read_yaml(args.asr_config)
    if "model_conf" not in config:
        raise ValueError(
            f"{args.asr_config}: must be the config.yaml of a trained model"
        )
    preset = read_preset(args.kd_config)
    if not (preset.get("kd_conf") or {}).get("pruning"):
        raise ValueError(
            f"{args.kd_config}: kd_conf.pruning is missing, which is needed to make a "
            "student sparse; see conf/kd/sparse.yaml"
        )
    if read_token_list(args.token_list) != config["token_list"]:
        raise ValueError(
            f"{args.token_list}: must be the token list of {args.asr_config}; give "
            "--token_list and --bpemodel of that model"
        )
    config = {k: v for k, v in config.items() if not OF_ONE_RUN.fullmatch(k)}
    unknown = config.keys() - _options_of(args.asr_config)
    if unknown:
        logging.warning(
            f"{args.asr_config}: left out, as unknown to this ESPnet: "
            f"{', '.join(sorted(unknown))}"
        )
    config = {name: value for name, value in config.items() if name not in unknown}
    _write_merged(config, preset, args)


def _options_of(config: str) -> set[str]:
    """The options of a model's task in this version of ESPnet."""
    from espnet_kd.models.config import task_of
    from espnet_kd.models.espnet_versions import default_config
    from espnet_kd.tasks.asr import ASRKDTask
    from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

    is_transducer = task_of(config) == "asr_transducer"
    task = ASRTransducerKDTask if is_transducer else ASRKDTask
    return set(default_config(task))


def _write_merged(config: dict, preset: dict, args: argparse.Namespace) -> None:
    text = f"# {args.asr_config} with {args.kd_config}\n"
    text += yaml.safe_dump(merged(config, preset), sort_keys=False)
    write_text(args.output_file, text)


def get_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = new_parser("preset", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for each in (options, merge, sparse):
        one = commands.add_parser(
            each.__name__, help=each.__doc__, formatter_class=Help
        )
        one.set_defaults(run=each)
        one.add_argument("--kd_config", required=True, help="Preset file")
        if each is not options:
            one.add_argument("--asr_config", required=True)
            one.add_argument("--output_file", required=True)
        if each is sparse:
            one.add_argument(
                "--token_list", required=True, help="must be that of the model"
            )
    return parser


def run(args: argparse.Namespace) -> None:
    """Run the chosen command."""
    args.run(args)


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
