"""Tiny ESPnet teachers with random weights and noise to decode, written once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import yaml

RATE = 16000
TOKENS = ["<blank>", "<unk>", "a", "b", "c", "<space>", "<sos/eos>"]
CONFIGS = {
    "attention": dict(
        encoder="transformer",
        encoder_conf=dict(
            output_size=16, attention_heads=2, linear_units=16, num_blocks=1
        ),
        decoder="transformer",
        decoder_conf=dict(attention_heads=2, linear_units=16, num_blocks=1),
        model_conf=dict(ctc_weight=0.3),
    ),
    "transducer": dict(
        encoder="transformer",
        encoder_conf=dict(
            output_size=16, attention_heads=2, linear_units=16, num_blocks=1
        ),
        decoder="transducer",
        decoder_conf=dict(hidden_size=16),
        joint_net_conf=dict(joint_space_size=16),
        model_conf=dict(ctc_weight=0.0, report_cer=False, report_wer=False),
    ),
    "asr_transducer": dict(
        encoder_conf=dict(
            input_conf=dict(subsampling_factor=4, conv_size=8, vgg_like=False),
            body_conf=[
                dict(
                    block_type="conformer",
                    hidden_size=16,
                    linear_size=16,
                    heads=2,
                    conv_mod_kernel_size=3,
                )
            ],
        ),
        decoder="rnn",
        decoder_conf=dict(embed_size=16, hidden_size=16),
        joint_network_conf=dict(joint_space_size=16),
    ),
}
KINDS = tuple(CONFIGS)
# Its feed-forward layers are convolutions.
CONFIGS["convolving"] = dict(
    CONFIGS["attention"],
    encoder="conformer",
    encoder_conf=dict(
        CONFIGS["attention"]["encoder_conf"],
        cnn_module_kernel=7,
        macaron_style=True,
        rel_pos_type="latest",
        positionwise_layer_type="conv1d",
    ),
)


# ESPnet's default of a conformer: positions that count from the end of the batch.
CONFIGS["legacy"] = dict(
    CONFIGS["convolving"],
    encoder_conf=dict(
        CONFIGS["convolving"]["encoder_conf"],
        rel_pos_type="legacy",
    ),
)


class Model(NamedTuple):
    """The paths of an ESPnet model."""

    config: str
    checkpoint: str


def write_model(folder: Path, kind: str, seed: int = 0) -> Model:
    """Build a tiny model and save it as ESPnet's training does."""
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    from espnet_kd.models import warprnnt
    from espnet_kd.models.espnet_versions import default_config

    warprnnt.install()
    task = ASRTransducerTask if kind == "asr_transducer" else ASRTask
    config = default_config(task)
    config.update(
        token_list=TOKENS,
        token_type="char",
        frontend_conf=dict(n_fft=512, hop_length=160, n_mels=20, fs="16k"),
        specaug=None,
        normalize="utterance_mvn",
        **CONFIGS[kind],
    )
    torch.manual_seed(seed)
    args = argparse.Namespace(**config)
    model = task.build_model(args)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)), encoding="utf-8")
    torch.save(model.state_dict(), folder / "model.pth")
    return Model(str(folder / "config.yaml"), str(folder / "model.pth"))


def write_data(folder: Path, seconds: dict[str, float], texts: dict[str, str]) -> Path:
    """A Kaldi folder of noise, with wav files beside the tables."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for utt_id, duration in seconds.items():
        noise = 0.1 * rng.standard_normal(int(duration * RATE))
        soundfile.write(folder / f"{utt_id}.wav", noise, RATE)
    tables = {
        "wav.scp": {utt_id: str(folder / f"{utt_id}.wav") for utt_id in seconds},
        "utt2spk": {utt_id: utt_id.split("-")[0] for utt_id in seconds},
        "text": texts,
    }
    for name, rows in tables.items():
        if rows:
            lines = [f"{key} {value}\n" for key, value in sorted(rows.items())]
            (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One tiny teacher of each kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six utterances of noise with references, one of them too short for any model."""
    seconds = {f"spk{n % 2}-utt{n}": 0.5 + 0.1 * n for n in range(5)}
    seconds["spk0-short"] = 0.012
    texts = {utt_id: "a bc" for utt_id in seconds}
    return write_data(tmp_path_factory.mktemp("data") / "train", seconds, texts)
