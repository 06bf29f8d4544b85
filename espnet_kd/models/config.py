"""The configuration of a trained ESPnet model, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Mapping

import humanfriendly

from espnet_kd.config.files import read_yaml

TaskName = Literal["asr", "asr_transducer"]
# Subsampling of input layers, convolutional and linear, of task `asr`.
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
    """Read the `config.yaml` beside an ESPnet model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a mapping of options, for example empty.
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
    """The tokens of a file, read as by ESPnet's tasks: lines end only at newlines (not
    at U+2028, for example), and trailing whitespace is removed."""
    with Path(path).open(encoding="utf-8") as lines:
        return [line.rstrip() for line in lines]


def sampling_rate_of(config: Mapping[str, Any]) -> int:
    """The sampling rate in Hz of a model's frontend; ESPnet's default is 16k."""
    rate = (config.get("frontend_conf") or {}).get("fs", 16000)
    return humanfriendly.parse_size(str(rate))


def reads_audio(config: Mapping[str, Any]) -> bool:
    """Whether a model's input is samples, read by a frontend or (`input_size: 1`) by
    the encoder itself, such as `torchaudiohubert`."""
    return config.get("input_size") in (None, 1)


def task_of(config: str | Path) -> TaskName:
    """The ESPnet2 task of a trained model, from its configuration.

    Only ESPnet's stand-alone transducer task writes `joint_network_conf`; the `asr`
    task calls the same block `joint_net_conf`.
    """
    keys = read_config(config)
    if "joint_network_conf" in keys:
        return "asr_transducer"
    if "ctc_conf" in keys:
        return "asr"
    raise ValueError(
        f"{config}: has neither `joint_network_conf` (asr_transducer) nor `ctc_conf` "
        "(asr); only models of ESPnet's tasks asr and asr_transducer can be teachers"
    )


def nodes_of_config(config: Mapping[str, Any], task: TaskName) -> set[str]:
    """The kinds of nodes at which a model can be compared, from its (training)
    configuration; `espnet_kd.models.branches.nodes_of_model` inspects the model."""
    model = config.get("model_conf") or {}
    lattice = {"sequence", "lattice", "band", "path"}
    if task == "asr_transducer":
        has_frames = (model.get("auxiliary_ctc_weight") or 0) > 0
        return lattice | ({"frames"} if has_frames else set())
    ctc_weight = model.get("ctc_weight", 0.5)
    decoder = config.get("decoder")
    nodes = {"frames"} if ctc_weight > 0 else set()
    if decoder == "transducer":
        # Blanks that span several frames give another lattice.
        multi_blank = model.get("transducer_multi_blank_durations")
        return nodes if multi_blank else nodes | lattice
    if ctc_weight < 1 and decoder not in (None, "linear_decoder"):
        nodes.add("tokens")
    return nodes | {"sequence"}


def frame_rate_of(
    config: Mapping[str, Any], task: TaskName, sampling_rate: int
) -> float | None:
    """Encoder frames per second of a (training) configuration with ESPnet's default
    frontend and an encoder with known subsampling; None for any other.

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
