"""The table of kd.sh --dry_run: what each stage would do, and its costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import humanfriendly

from espnet_kd.models.config import read_token_list
from espnet_kd.planning.chain import STAGES, Chain, inputs

if TYPE_CHECKING:
    from espnet_kd.planning.stages import Stage

TITLES = ("Stage", "", "Disk, GB", "Hours")


def outlook(chain: Chain, plan: Sequence[Stage] = ()) -> str:
    """A row for each stage.

    Args:
        plan: of the planner; may be empty.
    """
    states = dict(state.split(" ", 1) for state in chain.state)
    rows = [list(TITLES)]
    for number, name in STAGES.items():
        parts = [each for each in plan if each.number == number]
        state = _state(chain, number, states.get(str(number), ""))
        rows.append([f"{number:2} {name}", state, *_figures(chain, parts)])
    if not plan:
        rows = [row[:2] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _state(chain: Chain, number: int, seen: str) -> str:
    if number not in chain.stages:
        return "not requested"
    if number == 7:
        return "nothing to do, teachers run during stage 10"
    missing = [file for file in inputs(chain, number) if not chain.is_made(file)]
    if not missing:
        return seen or "will run"
    first, more = missing[0], len(missing) - 1
    stages = " or ".join(map(str, first.made_by))
    return (
        f"missing {first.path}"
        + (f", made by stage {stages}" if stages else "")
        + (f", and {more} more" if more else "")
    )


def _figures(chain: Chain, parts: Sequence[Stage]) -> tuple[str, str]:
    """Gigabytes and hours of a stage; hours of training on CPUs are not estimated."""
    disk = sum(part.disk.value for part in parts if part.disk)
    on_cpus = chain.ngpu == "0"
    seconds = sum(part.wall for part in parts if not (part.gpu and on_cpus))
    return _short(disk / 1e9), _short(seconds / 3600)


def _short(value: float) -> str:
    if value == 0:
        return ""
    return (
        "<0.01" if value < 0.01 else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"
    )


def planner_options(chain: Chain, teacher_configs: Sequence[Path]) -> list[str]:
    """The command line of `espnet_kd.bin.plan` for a run of kd.sh.

    Args:
        teacher_configs: training configuration of each teacher.

    Raises:
        ValueError: something that the planner needs is not yet known.
    """
    rate = humanfriendly.parse_size(chain.fs)
    audio = {name: _audio(chain, name, rate)[1] for name in chain.all_sets.split()}
    unlabelled = chain.unlabelled_set.split()
    others = set(chain.all_sets.split()) - set(unlabelled)
    others -= {chain.train_set, chain.teacher_train_set}
    utterances, seconds = _audio(chain, chain.train_set, rate)
    options = {
        "hours": seconds / 3600,
        "teacher_hours": audio[chain.teacher_train_set] / 3600,
        "unlabelled_hours": sum(audio[name] for name in unlabelled) / 3600,
        "eval_hours": sum(audio[name] for name in others) / 3600,
        "seconds": seconds / utterances,
        "fs": rate,
        "vocabulary": _vocabulary(chain),
        "student_config": chain.asr_config,
        "kd_config": chain.kd_config,
        "sparse_config": chain.sparse_config,
        "inference_config": chain.inference_config,
        "teacher_inference_config": chain.teacher_inference_config,
        "nbest": chain.teacher_nbest,
        "ngpu": max(1, int(chain.ngpu)),
        "nj": chain.nj,
        "gpu_inference": chain.gpu_inference,
    }
    words = ["--teacher_config", *map(str, teacher_configs)]
    for name, value in options.items():
        words += [f"--{name}", str(value)] if value != "" else []
    if any(Path(_source(chain, name), "segments").is_file() for name in audio):
        words.append("--segments")
    return words


def _audio(chain: Chain, name: str, rate: int) -> tuple[int, float]:
    """Utterances and seconds of a set, from the first table that has them."""
    source = _source(chain, name)
    tables = {
        f"{chain.data_feats}/{name}/utt2num_samples": lambda row: int(row[1]) / rate,
        f"{source}/utt2dur": lambda row: float(row[1]),
        f"{source}/segments": lambda row: float(row[3]) - float(row[2]),
    }
    for path, seconds in tables.items():
        if Path(path).is_file():
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            if not lines:
                raise ValueError(f"hours of audio are unknown, {path} is empty")
            return len(lines), sum(seconds(line.split()) for line in lines if line)
    raise ValueError(
        f"hours of audio are not yet known: none found of {', '.join(tables)}"
    )


def _source(chain: Chain, name: str) -> str:
    """The folder from which stage 2 makes a set."""
    perturbed = {f"{each}_sp": each for each in chain.data_train_sets.split()}
    return f"data/{perturbed.get(name, name)}"


def _vocabulary(chain: Chain) -> int:
    path = Path(chain.token_list)
    if path.is_file():
        return len(read_token_list(path))
    if chain.token_type != "bpe":
        raise ValueError(f"{path}: not found yet")
    return int(chain.nbpe)
