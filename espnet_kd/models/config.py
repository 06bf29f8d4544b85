"""What the configuration of a trained ESPnet model tells, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Mapping

import humanfriendly

from espnet_kd.config.files import read_yaml

TaskName = Literal["asr", "asr_transducer"]
# Frames of an input layer's output, of convolutional and linear ones of task `asr`.
_SUBSAMPLING = {
    "conv2d": 4,
    "conv2d1": 1,
    "conv2d2": 2,
    "conv2d6": 6,
    "conv2d8": 8,
    "linear": 1,
}
_WITH_INPUT_LAYER = ("branchformer", "conformer", "e_branchformer", "transformer")


def read_config(config: str | Path) -> dict:
    """Read the `config.yaml` that ESPnet wrote beside a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than options, as an empty one does.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such model configuration; give the config.yaml of a trained "
            "ESPnet model (exp/asr_*/config.yaml)"
        )
    options = read_yaml(path)
    if not options:
        raise ValueError(f"{path}: must be a mapping of options to values")
    return options


def read_token_list(path: str | Path) -> list[str]:
    """The tokens of a file as ESPnet's tasks read it: lines end at newlines alone (not
    at U+2028, say), and lose blanks at their ends."""
    with Path(path).open(encoding="utf-8") as lines:
        return [line.rstrip() for line in lines]


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


def nodes_of_config(config: Mapping[str, Any], task: TaskName) -> set[str]:
    """Where a model can be compared, as `kd_conf` names it, told by its (training)
    configuration; `espnet_kd.models.branches.nodes_of_model` asks the model itself."""
    model = config.get("model_conf") or {}
    lattice = {"sequence", "lattice", "band", "path"}
    if task == "asr_transducer":
        has_frames = (model.get("auxiliary_ctc_weight") or 0) > 0
        return lattice | ({"frames"} if has_frames else set())
    ctc_weight = model.get("ctc_weight", 0.5)
    decoder = config.get("decoder")
    nodes = {"frames"} if ctc_weight > 0 else set()
    if decoder == "transducer":
        # Blanks of several frames make another lattice.
        multi_blank = model.get("transducer_multi_blank_durations")
        return nodes if multi_blank else nodes | lattice
    if ctc_weight < 1 and decoder not in (None, "linear_decoder"):
        nodes.add("tokens")
    return nodes | {"sequence"}


def frame_rate_of(
    config: Mapping[str, Any], task: TaskName, sampling_rate: int
) -> float | None:
    """Encoder frames per second of a (training) configuration with ESPnet's default
    frontend and an encoder whose subsampling is known; None for any other.

    Args:
        sampling_rate: of the audio, Hz.
    """
    if config.get("frontend", "default") != "default" or not reads_audio(config):
        return None
    if config.get("preencoder") is not None:
        return None
    hop_length = (config.get("frontend_conf") or {}).get("hop_length", 128)
    conf = config.get("encoder_conf") or {}
    if task == "asr_transducer":
        blocks = conf.get("body_conf") or []
        if any(block.get("block_type") == "conv1d" for block in blocks):
            return None  # it may have a stride
        subsampling = (conf.get("input_conf") or {}).get("subsampling_factor") or 4
    elif config.get("encoder") in _WITH_INPUT_LAYER:
        subsampling = _SUBSAMPLING.get(conf.get("input_layer", "conv2d"))
    else:
        return None
    return subsampling and sampling_rate / hop_length / subsampling
