"""An utterance is encoded in a padded batch as it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.tasks.asr import encoder_choices

from espnet_kd.models.espnet_versions import installed_version
from espnet_kd.models.lengths import use_true_lengths

ROOT = Path(__file__).parents[2]
SIZE = 16  # of the features, if chosen by a test
ASR = dict(output_size=12, attention_heads=2, num_blocks=2)
FEED_FORWARD = dict(linear_units=12)
CGMLP = dict(cgmlp_linear_units=12, cgmlp_conv_kernel=7, rel_pos_type="latest")
CONVOLVING = {
    "conformer": dict(
        **FEED_FORWARD,
        cnn_module_kernel=7,
        macaron_style=True,
        rel_pos_type="latest",
        positionwise_layer_type="conv1d",
        positionwise_conv_kernel_size=3,
    ),
    "branchformer": CGMLP,
    "e_branchformer": dict(**CGMLP, **FEED_FORWARD, merge_conv_kernel=3),
}
ASR_ENCODERS = [
    *(
        ("transformer", dict(ASR, **FEED_FORWARD, input_layer=layer))
        for layer in ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear")
    ),
    *(
        (name, dict(ASR, **conf, input_layer=layer))
        for name, conf in CONVOLVING.items()
        for layer in ("conv2d", "conv2d2", "linear")
    ),
    (
        "e_branchformer",
        dict(ASR, **CONVOLVING["e_branchformer"], input_layer="conv1d3"),
    ),
    ("rnn", dict(hidden_size=12, output_size=12, num_layers=2)),
]
TRANSDUCER_INPUTS = [(False, 2), (False, 4), (False, 6), (True, 4), (True, 6)]


class Model(torch.nn.Module):
    """The parts of an ESPnet model that `use_true_lengths` needs."""

    def __init__(self, encoder: torch.nn.Module, frontend=None) -> None:
        super().__init__()
        self.encoder = encoder
        self.frontend = frontend

    def forward(self, x: torch.Tensor, lengths: torch.Tensor):
        if self.frontend is not None:
            x, lengths = self.frontend(x, lengths)
        return self.encoder(x, lengths)[:2]


def transducer_encoder(vgg: bool, factor: int, block: str = "conformer", size=SIZE):
    return Encoder(
        input_size=size,
        main_conf=dict(pos_wise_act_type="swish", conv_mod_act_type="swish"),
        input_conf=dict(
            vgg_like=vgg, conv_size=(4, 6) if vgg else 6, subsampling_factor=factor
        ),
        body_conf=[
            dict(
                block_type=block,
                hidden_size=12,
                linear_size=12,
                heads=2,
                num_blocks=2,
                conv_mod_kernel_size=5,
            )
        ],
    )


def asr_encoder(name: str, conf: dict, size: int = SIZE) -> torch.nn.Module:
    return encoder_choices.get_class(name)(input_size=size, **conf)


@torch.no_grad()
def difference(model: torch.nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> float:
    """Largest difference between a batch and its utterances alone; inf for lengths.

    The padding is noise: nothing may read it.
    """
    model.eval()
    padding = torch.arange(x.size(1)) >= lengths[:, None]
    x = torch.where(padding.view(*padding.shape, *[1] * (x.dim() - 2)), 9.0, x)
    batched, frames = model(x, lengths)
    worst = 0.0
    for n, length in enumerate(lengths.tolist()):
        single, single_frames = model(x[n : n + 1, :length], lengths[n : n + 1])
        if int(single_frames) != int(frames[n]):
            return torch.inf
        kept = batched[n, : int(single_frames)] - single[0, : int(single_frames)]
        worst = max(worst, float(kept.abs().max()))
    assert batched.size(1) == int(frames.max())
    return worst


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings so far."""
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def features(size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Every remainder that a subsampling by 4, 6 or 8 can leave; longest first."""
    lengths = torch.tensor([77, 76, 75, 74, 73, 72, 71, 70, 50, 41, 35, 33, 32])
    return torch.randn(len(lengths), 77, size), lengths


@pytest.mark.parametrize(
    "name, conf",
    ASR_ENCODERS,
    ids=[f"{n} {c.get('input_layer')}" for n, c in ASR_ENCODERS],
)
def test_asr_encoders(name: str, conf: dict, caplog: pytest.LogCaptureFixture):
    model = Model(asr_encoder(name, conf))
    keys = model.state_dict().keys()
    needs_no_mask = (name, conf.get("input_layer")) == ("transformer", "linear")
    masked = installed_version() >= "202610" and "positionwise_layer_type" not in conf
    is_right = name == "rnn" or needs_no_mask or masked
    assert (difference(model, *features()) < 1e-4) == is_right  # in stock ESPnet
    assert use_true_lengths(model) == (not is_right)
    assert not warnings(caplog)
    assert difference(model, *features()) < 1e-4
    assert model.state_dict().keys() == keys
    assert not use_true_lengths(model)  # nothing is left to change


@pytest.mark.parametrize("block", ["conformer", "branchformer", "ebranchformer"])
@pytest.mark.parametrize("vgg, factor", TRANSDUCER_INPUTS)
def test_asr_transducer_encoders(
    vgg: bool, factor: int, block: str, caplog: pytest.LogCaptureFixture
):
    model = Model(transducer_encoder(vgg, factor, block))
    is_right = installed_version() >= "202611" and not vgg
    stock = difference(model, *features())
    assert (stock < 1e-4) == is_right
    assert (stock == torch.inf) == (installed_version() < "202611")
    assert use_true_lengths(model) == (not is_right)
    assert not warnings(caplog)
    assert difference(model, *features()) < 1e-4


@pytest.mark.parametrize(
    "name, choice, conf",
    [
        ("VGGRNNEncoder", "vgg_rnn", dict(hidden_size=12)),
        (
            "ContextualBlockTransformerEncoder",
            "contextual_block_transformer",
            dict(ASR, block_size=8, hop_size=4, look_ahead=2),
        ),
        (
            "rel_pos_type legacy of ConformerEncoder",
            "conformer",
            dict(ASR, **FEED_FORWARD),  # ESPnet's defaults
        ),
    ],
)
def test_an_encoder_that_is_not_corrected_is_named(
    name: str, choice: str, conf: dict, caplog: pytest.LogCaptureFixture
):
    model = Model(asr_encoder(choice, conf))
    use_true_lengths(model)
    assert difference(model, *features()) > 1e-4  # the warning is true
    # ESPnet has its own warning about legacy positions.
    (warning,) = [text for text in warnings(caplog) if text.startswith("true_lengths")]
    assert warning.startswith(f"true_lengths: {name} is not among")


def test_a_block_that_is_not_corrected_is_named(caplog: pytest.LogCaptureFixture):
    block = dict(block_type="conv1d", output_size=12, kernel_size=3)
    input_conf = dict(vgg_like=False, conv_size=6, subsampling_factor=4)
    model = Model(Encoder(SIZE, input_conf=input_conf, body_conf=[block])).eval()
    use_true_lengths(model)
    if installed_version() >= "202611":
        assert difference(model, *features()) < 1e-4
        assert not warnings(caplog)
        return
    out, frames = model(*features())
    assert int(frames.max()) > out.size(1)  # more frames than the output has
    (warning,) = warnings(caplog)
    assert warning.startswith("true_lengths: block_type conv1d of Encoder is not")


@pytest.mark.parametrize(
    "hop, win, n_fft", [(80, 256, 256), (100, 200, 256), (64, 64, 64)]
)
def test_waveforms(hop: int, win: int, n_fft: int):
    lengths = torch.tensor([8000, 7999, 7920, 7900, 6000, 4001, 4000])
    x = torch.randn(len(lengths), 8000)
    for encoder in (
        transducer_encoder(False, 4),
        asr_encoder("conformer", dict(ASR, **CONVOLVING["conformer"])),
    ):
        options = dict(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=SIZE)
        model = Model(encoder, DefaultFrontend(fs=8000, **options))
        use_true_lengths(model)
        assert difference(model, x, lengths) < 1e-4


def test_the_end_is_mirrored_in_every_channel():
    stft = DefaultFrontend(fs=8000, n_fft=64, hop_length=32, n_mels=SIZE).stft
    model = Model(torch.nn.Identity())
    model.stft = stft
    x, lengths = torch.randn(2, 320, 3), torch.tensor([320, 200])
    stock = [
        stft(x[n : n + 1, :length], lengths[n : n + 1])[0]
        for n, length in enumerate(lengths)
    ]
    assert not torch.allclose(stft(x, lengths)[0][1, : stock[1].size(1)], stock[1][0])
    assert use_true_lengths(model)
    batched, frames = stft(x, lengths)
    for n in range(2):
        assert stock[n].size(1) == frames[n]
        torch.testing.assert_close(batched[n, : frames[n]], stock[n][0])


def test_training_gives_padding_no_gradient():
    model = Model(asr_encoder("conformer", dict(ASR, **CONVOLVING["conformer"])))
    use_true_lengths(model)
    x, lengths = features()
    x.requires_grad_()
    out, frames = model.eval()(x, lengths)
    kept = torch.arange(out.size(1)) < frames[:, None]
    (out * kept[..., None]).sum().backward()
    for n, length in enumerate(lengths):
        assert x.grad[n, length:].abs().sum() == 0
        assert x.grad[n, :length].abs().sum() > 0


def recipe_configs() -> list[Path]:
    """Training configurations of this repository that have an encoder after ESPnet's
    own frontend."""
    files = sorted({p.resolve() for p in (ROOT / "conf").rglob("*.yaml")})
    files += sorted({p.resolve() for p in ROOT.glob("egs/*/asr1/conf/**/*.yaml")})
    configs = {path: yaml.safe_load(path.read_text()) for path in files}
    return [
        path
        for path, conf in configs.items()
        if conf and "encoder_conf" in conf
        if conf.get("frontend", "default") == "default"
    ]


def small(conf: dict) -> dict:
    """An encoder of the same modules, with few and narrow layers."""
    most = dict(
        num_blocks=2,
        num_layers=2,
        hidden_size=64,
        output_size=64,
        linear_units=64,
        linear_size=64,
        cgmlp_linear_units=64,
    )
    small_conf = dict(conf)
    for name, value in conf.items():
        if name in most:
            small_conf[name] = min(value, most[name])
        elif name == "attention_heads":
            small_conf[name] = 4
        elif isinstance(value, list):
            small_conf[name] = [small(v) if isinstance(v, dict) else v for v in value]
    return small_conf


@pytest.mark.parametrize(
    "path", recipe_configs(), ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_encoder_that_a_recipe_trains(path: Path):
    """From waveforms, with the frontend of the recipe."""
    conf = yaml.safe_load(path.read_text())
    frontend_conf = dict(dict(fs=16000), **conf.get("frontend_conf") or {})
    frontend = DefaultFrontend(**frontend_conf)
    size = frontend.output_size()
    if "joint_network_conf" in conf:
        encoder = Encoder(input_size=size, **small(conf["encoder_conf"]))
        encoder.dynamic_chunk_training = False  # ESPnet draws chunks in evaluation, too
    else:
        encoder = asr_encoder(conf["encoder"], small(conf["encoder_conf"]), size)
    model = Model(encoder, frontend)
    use_true_lengths(model)
    lengths = torch.tensor([16000, 15000, 12345, 12300, 9000])
    assert difference(model, torch.randn(5, 16000), lengths) < 1e-4
