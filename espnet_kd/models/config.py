"""What the configuration of a trained ESPnet model tells, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Mapping

import humanfriendly
import yaml

TaskName = Literal["asr", "asr_transducer"]


def read_config(config: str | Path) -> dict:
    """Read the `config.yaml` that ESPnet wrote beside a model.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such model configuration; give the config.yaml of a trained "
            "ESPnet model (exp/asr_*/config.yaml)"
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def sampling_rate_of(config: Mapping[str, Any]) -> int:
    """The rate in Hz of the audio that a model's frontend takes; ESPnet's is 16k."""
    rate = (config.get("frontend_conf") or {}).get("fs", 16000)
    return humanfriendly.parse_size(str(rate))


def reads_audio(config: Mapping[str, Any]) -> bool:
    """Whether a model takes samples: by a frontend, or (`input_size: 1`) by an encoder
    of its own, as `torchaudiohubert` does."""
    return config.get("input_size") in (None, 1)


def task_of(config: str | Path) -> TaskName:
    """The ESPnet2 task that trained a model, told by its configuration.

    Only ESPnet's stand-alone transducer task writes `joint_network_conf`; the `asr`
    task calls the same block `joint_net_conf`.
    """
    keys = read_config(config)
    if "joint_network_conf" in keys:
        return "asr_transducer"
    if "ctc_conf" in keys:
        return "asr"
    raise ValueError(
        f"{config}: neither `joint_network_conf` (asr_transducer) nor `ctc_conf` (asr) "
        "is in it; only models of ESPnet's tasks asr and asr_transducer can teach"
    )
