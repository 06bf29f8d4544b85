"""A small recipe: audio of noise and tones, tiny models, ESPnet's options for them.

Models are built by ESPnet's own task classes from ESPnet's own options, as
`python -m espnet_kd.bin.asr_train` builds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import soundfile
import torch
import yaml

RATE = 8000
TOKENS = ["<blank>", "<unk>", "a", "b", "c", "d", "<space>", "<sos/eos>"]
TEXTS = ["ab", "bca d", "cab", "d", "a bcd", "dd", "bac", "c a"]
SECONDS = [0.5, 0.95, 0.6, 0.42, 1.0, 0.55, 0.7, 0.63]

TRANSFORMER = dict(
    encoder="transformer",
    encoder_conf=dict(
        output_size=12,
        attention_heads=2,
        linear_units=12,
        num_blocks=1,
        input_layer="conv2d",
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        attention_dropout_rate=0.0,
    ),
)
ATTENTION = dict(
    decoder="transformer",
    decoder_conf=dict(
        attention_heads=2,
        linear_units=12,
        num_blocks=1,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        self_attention_dropout_rate=0.0,
        src_attention_dropout_rate=0.0,
    ),
)
CONFORMER = dict(
    main_conf=dict(pos_wise_act_type="swish", conv_mod_act_type="swish"),
    input_conf=dict(vgg_like=False, conv_size=6, subsampling_factor=4),
    body_conf=[
        dict(
            block_type="conformer",
            hidden_size=12,
            linear_size=12,
            heads=2,
            conv_mod_kernel_size=3,
            dropout_rate=0.0,
            pos_wise_dropout_rate=0.0,
            conv_mod_norm_type="layer_norm",
        )
    ],
)
RNN = dict(embed_size=12, hidden_size=12, dropout_rate=0.0, embed_dropout_rate=0.0)
NO_REPORT = dict(report_cer=False, report_wer=False)

# Kind of model: ESPnet task and training configuration.
KINDS = {
    "hybrid": (
        "asr",
        dict(
            **TRANSFORMER,
            **ATTENTION,
            model_conf=dict(ctc_weight=0.3, lsm_weight=0.1, **NO_REPORT),
        ),
    ),
    "ctc": ("asr", dict(**TRANSFORMER, model_conf=dict(ctc_weight=1.0, **NO_REPORT))),
    "attention": (
        "asr",
        dict(**TRANSFORMER, **ATTENTION, model_conf=dict(ctc_weight=0.0, **NO_REPORT)),
    ),
    "transducer": (
        "asr",
        dict(
            **TRANSFORMER,
            decoder="transducer",
            decoder_conf=dict(hidden_size=12),
            joint_net_conf=dict(joint_space_size=12),
            model_conf=dict(ctc_weight=0.3, **NO_REPORT),
        ),
    ),
    "asr_transducer": (
        "asr_transducer",
        dict(
            encoder_conf=CONFORMER,
            decoder="rnn",
            decoder_conf=RNN,
            joint_network_conf=dict(joint_space_size=12),
            model_conf=dict(auxiliary_ctc_weight=0.3),
        ),
    ),
    "pruned": (
        "asr_transducer",
        dict(
            encoder_conf=CONFORMER,
            decoder="rnn",
            decoder_conf=RNN,
            joint_network_conf=dict(joint_space_size=12),
            model_conf=dict(
                use_k2_pruned_loss=True,
                k2_pruned_loss_args=dict(prune_range=3, simple_loss_scaling=0.5),
                auxiliary_ctc_weight=0.3,
            ),
            scheduler="warmuplr",
            scheduler_conf=dict(warmup_steps=20),
        ),
    ),
}
TRAINING = dict(
    frontend_conf=dict(fs=RATE, n_fft=256, hop_length=80, n_mels=16),
    normalize=None,
    specaug=None,
    token_type="char",
    token_list=TOKENS,
    batch_type="unsorted",
    batch_size=4,
    max_epoch=1,
    optim="sgd",
    optim_conf=dict(lr=0.02),
    seed=3,
    num_workers=0,
    num_att_plot=0,
    use_tensorboard=False,
    use_matplotlib=False,
    log_interval=1,
    keep_nbest_models=1,
    best_model_criterion=[["valid", "loss", "min"]],
)


class Model(NamedTuple):
    """The files of a trained model."""

    config: str
    checkpoint: str


def write_audio(folder: Path) -> Path:
    """Eight utterances of a tone in noise as a Kaldi folder with ESPnet's shapes."""
    rng = np.random.default_rng(0)
    (folder / "wav").mkdir(parents=True)
    rows: dict[str, dict[str, str]] = {name: {} for name in FILES}
    for n, (text, seconds) in enumerate(zip(TEXTS, SECONDS)):
        samples = int(RATE * seconds)
        time = np.arange(samples) / RATE
        wave = 0.2 * np.sin(2 * np.pi * 150 * (n + 1) * time)
        path = folder / "wav" / f"utt{n}.wav"
        soundfile.write(path, wave + 0.05 * rng.standard_normal(samples), RATE)
        values = (
            path,
            text,
            f"spk{n}",
            samples,
            f"{len(text)},{len(TOKENS)}",
            0.25 * n,
        )
        for name, value in zip(FILES, values):
            rows[name][f"utt{n}"] = str(value)
    for name, table in rows.items():
        lines = [f"{key} {value}\n" for key, value in table.items()]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder


FILES = ("wav.scp", "text", "utt2spk", "speech_shape", "text_shape.char", "kd_weight")


def merged(base: dict, changes: dict) -> dict:
    """`base` with `changes`; mappings (`model_conf` ..) are merged key by key."""
    result = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result


class Recipe:
    """A recipe folder with data; builds, trains and stores models of `KINDS`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_audio(folder / "data")

    def config(self, kind: str, **changes) -> dict:
        """Training configuration of a kind of model, with changes."""
        return merged(merged(TRAINING, KINDS[kind][1]), changes)

    def options(
        self, kind: str, output: str, weights: bool = False, **changes
    ) -> list[str]:
        """Command line of `asr_train` or `asr_transducer_train`."""
        config = self.folder / f"{output}.yaml"
        config.write_text(yaml.safe_dump(self.config(kind, **changes)))
        options = ["--config", str(config), "--ngpu", "0"]
        options += ["--output_dir", str(self.folder / output)]
        for part in ("train", "valid"):
            for name, key, kind_of_file in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("kd_weight", "kd_weight", "text_float"),
            ):
                if name != "kd_weight" or (weights and part == "train"):
                    options.append(f"--{part}_data_path_and_name_and_type")
                    options.append(f"{self.data / name},{key},{kind_of_file}")
            for name in ("speech_shape", "text_shape.char"):
                options += [f"--{part}_shape_file", str(self.data / name)]
        return options

    def task(self, kind: str, stock: bool = False) -> type:
        """The task class: ours, or ESPnet's."""
        if stock:
            from espnet2.tasks.asr import ASRTask
            from espnet2.tasks.asr_transducer import ASRTransducerTask

            return ASRTask if KINDS[kind][0] == "asr" else ASRTransducerTask
        from espnet_kd.tasks.asr import ASRKDTask
        from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

        return ASRKDTask if KINDS[kind][0] == "asr" else ASRTransducerKDTask

    def build(
        self,
        kind: str,
        seed: int = 0,
        stock: bool = False,
        weights: bool = False,
        ngpu: int = 0,
        **changes,
    ) -> torch.nn.Module:
        """A model as training would build it, in evaluation mode."""
        task = self.task(kind, stock)
        options = self.options(kind, "build", weights, **changes)
        args = task.get_parser().parse_args([*options, "--ngpu", str(ngpu)])
        torch.manual_seed(seed)
        return task.build_model(args).eval()

    def train(self, kind: str, output: str, stock: bool = False, **changes) -> Path:
        """Train in this process; returns the experiment folder."""
        self.task(kind, stock).main(cmd=self.options(kind, output, **changes))
        return self.folder / output

    def teacher(self, kind: str, name: str | None = None, **changes) -> Model:
        """An untrained model, stored as ESPnet stores a trained one."""
        from espnet_kd.models import warprnnt

        warprnnt.install()
        if name is None:  # tests share the folder
            name = f"teacher_{kind}"
            name += f"_{crc32(yaml.safe_dump(changes).encode()):x}" if changes else ""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            args = self.task(kind, stock=True).get_parser()
            args = args.parse_args(self.options(kind, folder.name, **changes))
            torch.manual_seed(len(list(self.folder.iterdir())))
            model = self.task(kind, stock=True).build_model(args)
            (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
            torch.save(model.state_dict(), folder / "model.pth")
        return Model(str(folder / "config.yaml"), str(folder / "model.pth"))

    @staticmethod
    def all_types() -> dict:
        """Options of `torch.load` for checkpoint.pth, which holds more than tensors."""
        has_option = torch.__version__ >= "2"
        return dict(weights_only=False) if has_option else {}

    def batch(
        self, indices: list[int] | range = range(4), weights: bool = False
    ) -> dict[str, torch.Tensor]:
        """Padded utterances as ESPnet's collate function returns them."""
        waves = [soundfile.read(self.data / f"wav/utt{n}.wav")[0] for n in indices]
        labels = [
            [TOKENS.index(c.replace(" ", "<space>")) for c in TEXTS[n]] for n in indices
        ]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = dict(
            speech=pad([torch.tensor(x).float() for x in waves], batch_first=True),
            speech_lengths=torch.tensor([len(x) for x in waves]),
            text=pad([torch.tensor(x) for x in labels], True, -1),
            text_lengths=torch.tensor([len(x) for x in labels]),
        )
        if weights:
            batch["kd_weight"] = torch.tensor([[0.25 * n] for n in indices])
            batch["kd_weight_lengths"] = torch.ones(len(waves), dtype=torch.long)
        return batch


def teachers(*models: Model) -> dict:
    """The options that name teachers."""
    return dict(
        teacher_config=[model.config for model in models],
        teacher_model_file=[model.checkpoint for model in models],
    )


def load_stock(model: Model) -> torch.nn.Module:
    """The model as stock ESPnet loads it for inference."""
    config = yaml.safe_load(Path(model.config).read_text())
    if "joint_network_conf" in config:
        from espnet2.tasks.asr_transducer import ASRTransducerTask as Task
    else:
        from espnet2.tasks.asr import ASRTask as Task
    return Task.build_model_from_file(model.config, model.checkpoint, "cpu")[0].eval()


def train_mode(model: torch.nn.Module) -> torch.nn.Module:
    """Training mode, but batch normalisation uses its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    return model
