"""The models of a run of kd.sh, from their configurations; does not import torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import yaml

from espnet_kd.config.files import read_yaml
from espnet_kd.config.presets import merged, read_preset
from espnet_kd.models.config import TaskName, read_config, task_of
from espnet_kd.planning.chain import Chain, is_foreign

T = TypeVar("T")
# Options of training that are checked; an option of kd.sh (--asr_args) may set them.
NESTED = ("kd_conf", "frontend_conf", "encoder_conf", "model_conf")
PLAIN = ("frontend", "encoder", "decoder", "preencoder")


class Described(NamedTuple):
    """A trained model, or one that a stage of this run trains.

    `name` is the one used in messages, `path` its configuration.
    """

    name: str
    path: str
    config: Mapping[str, Any]
    task: TaskName
    is_trained: bool = False


def student_of(chain: Chain) -> Described | None:
    """None if its configuration cannot be read, which is reported separately."""
    config = or_none(lambda: with_args(read_yaml(chain.asr_config), chain.asr_args))
    if config is None:
        return None
    return Described("the student", chain.asr_config, config, chain.asr_task)


def kd_student(chain: Chain) -> Described:
    """The student of stage 10, with its configuration merged as by kd.sh; if that
    cannot be read, which is reported separately, with preset and options only.

    Raises:
        OSError, ValueError, yaml.YAMLError: preset or options cannot be read.
    """
    config = or_none(lambda: read_yaml(chain.asr_config)) or {}
    config = merged(config, read_preset(chain.kd_config))
    config = with_args(config, f"{chain.asr_args} {chain.kd_args}")
    path = f"{chain.asr_config} and {chain.kd_config}"
    return Described("the student", path, config, chain.asr_task)


def sparse_student(chain: Chain, teacher: Described) -> Described:
    """The student of stage 11, which starts from its teacher.

    Raises:
        OSError, ValueError, yaml.YAMLError: preset or options cannot be read.
    """
    config = {name: v for name, v in teacher.config.items() if name != "kd_conf"}
    config = merged(config, read_preset(chain.sparse_config))
    config = with_args(config, chain.sparse_args)
    return teacher._replace(name="the student", config=config)


def trains_teacher(chain: Chain) -> bool:
    """Whether stage 5 trains the first teacher in this run."""
    is_asked_for = 5 in chain.stages and bool(chain.teacher_asr_config)
    return is_asked_for and not is_foreign(chain.teachers[0], "config.yaml")


def teachers_of(chain: Chain) -> list[Described]:
    """The teachers whose configurations can be read."""
    found = []
    for index, folder in enumerate(chain.teachers):
        if index == 0 and trains_teacher(chain):
            path, args = chain.teacher_asr_config, chain.teacher_asr_args
            config = or_none(lambda p=path, a=args: with_args(read_yaml(p), a))
            if config is not None:
                found.append(Described(path, path, config, chain.new_teacher_task))
            continue
        path = f"{folder}/config.yaml"
        config = or_none(lambda p=path: read_config(p))
        task = config and or_none(lambda p=path: task_of(p))
        if task:
            found.append(Described(path, path, config, task, is_trained=True))
    return found


def with_args(config: Mapping[str, Any], args: str) -> dict:
    """A training configuration with options of the command line applied.

    Raises:
        ValueError: the options cannot be read.
    """
    from espnet2.utils.nested_dict_action import NestedDictAction

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in NESTED:
        parser.add_argument(f"--{name}", action=NestedDictAction, default={})
    for name in PLAIN:
        parser.add_argument(f"--{name}")
    known = {k: v for k, v in config.items() if k in (*NESTED, *PLAIN)}
    parser.set_defaults(**known)
    try:
        # Split as by bash: quotes within ${asr_args} are YAML's.
        given, _ = parser.parse_known_args(args.split())
    except SystemExit as error:  # argparse has printed the reason
        raise ValueError(f"{args}: cannot be read as options of training") from error
    changed = {k: v for k, v in vars(given).items() if k in config or v}
    return {**config, **changed}


def or_none(read: Callable[[], T]) -> T | None:
    """None for a file that cannot be read, which is reported once, elsewhere."""
    try:
        return read()
    except (OSError, ValueError, yaml.YAMLError):
        return None


@contextmanager
def named(option: str) -> Iterator[list[str]]:
    """Collects an exception of the body as a fault, prefixed with an option's name."""
    problems: list[str] = []
    try:
        yield problems
    except FileNotFoundError as error:
        problems.append(f"--{option} {error.filename}: not found")
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        problems.append(f"--{option}: cannot be read as YAML: {reason}")
    except (OSError, ValueError) as error:
        problems.append(f"--{option}: {error}")
