"""Every encoder of the `asr` task that needs no download, with each of its inputs."""

from __future__ import annotations

import copy

import torch
import yaml

from tests.tasks.recipe import Model, Recipe

SIZE = dict(
    output_size=16,
    attention_heads=2,
    num_blocks=1,
    dropout_rate=0.0,
    positional_dropout_rate=0.0,
    attention_dropout_rate=0.0,
)
FEED_FORWARD = dict(linear_units=12)
CGMLP = dict(cgmlp_linear_units=12, cgmlp_conv_kernel=7)
ATTENTION = dict(rel_pos_type="latest")
ABSOLUTE = dict(pos_enc_layer_type="abs_pos", selfattention_layer_type="selfattn")
# Its positional encoding has a parameter.
SCALED = dict(ABSOLUTE, pos_enc_layer_type="scaled_abs_pos")
BRANCH_SCALED = dict(
    pos_enc_layer_type="scaled_abs_pos", attention_layer_type="selfattn"
)
BRANCH = {
    "branchformer": dict(SIZE, **CGMLP),
    "e_branchformer": dict(SIZE, **FEED_FORWARD, **CGMLP, merge_conv_kernel=3),
}
CONFORMER = dict(SIZE, **FEED_FORWARD, cnn_module_kernel=7, macaron_style=True)
MULTI = dict(
    SIZE,
    **FEED_FORWARD,
    cgmlp_linear_units=12,
    multicgmlp_kernel_sizes="3,5",
    multicgmlp_merge_conv_kernel=3,
)
BLOCKS = dict(SIZE, **FEED_FORWARD, block_size=8, hop_size=4, look_ahead=2)
CONV2D = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8")
# (encoder, its configuration without input_layer, input layers)
_FAMILIES = [
    ("transformer", dict(SIZE, **FEED_FORWARD), (*CONV2D, "conv1d2", "linear")),
    ("conformer", dict(CONFORMER, **ATTENTION), (*CONV2D, "linear")),
    ("conformer", dict(CONFORMER), ("conv2d",)),  # legacy positions
    ("conformer", dict(CONFORMER, **ABSOLUTE), ("conv2d",)),
    ("conformer", dict(CONFORMER, **SCALED), (*CONV2D, "linear")),
    ("branchformer", dict(BRANCH["branchformer"], **ATTENTION), (*CONV2D, "linear")),
    ("branchformer", dict(BRANCH["branchformer"], **BRANCH_SCALED), ("conv2d",)),
    (
        "e_branchformer",
        dict(BRANCH["e_branchformer"], **ATTENTION),
        (*CONV2D, "conv1d1", "conv1d2", "conv1d3", "linear"),
    ),
    (
        "e_branchformer",
        dict(BRANCH["e_branchformer"], **BRANCH_SCALED),
        ("conv2d2", "conv1d1", "conv1d2", "conv1d3"),
    ),
    ("multiconv_conformer", dict(MULTI, **ATTENTION), CONV2D),
    ("contextual_block_transformer", BLOCKS, ("conv2d", "conv2d6", "conv2d8")),
    ("contextual_block_conformer", BLOCKS, ("conv2d", "conv2d6", "conv2d8")),
]
ENCODERS: list[tuple[str, dict]] = [
    *(
        (name, dict(conf, input_layer=layer))
        for name, conf, layers in _FAMILIES
        for layer in layers
    ),
    ("rnn", dict(hidden_size=12, output_size=12, num_layers=1, dropout=0.0)),
    ("vgg_rnn", dict(hidden_size=12, output_size=12, num_layers=1, dropout=0.0)),
]
IDS = [
    " ".join(
        [
            name,
            *(str(conf[k]) for k in ("input_layer", "pos_enc_layer_type") if k in conf),
        ]
    )
    for name, conf in ENCODERS
]


def before_202609(name: str, conf: dict) -> dict[str, str]:
    """Renamed weights: their names before 202609, and since."""
    layer = conf.get("input_layer", "")
    if "contextual" in name or not layer.startswith("conv") or layer == "conv2d8":
        return {}
    names = {
        f"encoder.embed.out.0.{each}": f"encoder.embed.out.{each}"
        for each in ("weight", "bias")
    }
    if conf.get("pos_enc_layer_type") == "scaled_abs_pos":
        names["encoder.embed.out.1.alpha"] = "encoder.embed.pos_enc.alpha"
    return names


def write_model(recipe: Recipe, folder: str, name: str, conf: dict) -> Model:
    """A CTC model with an encoder, stored like a trained model of ESPnet."""
    from espnet2.tasks.asr import ASRTask

    target = recipe.folder / folder
    target.mkdir()
    args = ASRTask.get_parser().parse_args(recipe.options("ctc", folder))
    args.encoder, args.encoder_conf = name, copy.deepcopy(conf)
    torch.manual_seed(len(folder))
    model = ASRTask.build_model(args)
    with torch.no_grad():
        for parameter in model.parameters():  # alpha and biases too
            parameter.add_(0.02 * torch.randn_like(parameter))
    (target / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), target / "model.pth")
    return Model(str(target / "config.yaml"), str(target / "model.pth"))


@torch.no_grad()
def encode(model: torch.nn.Module, recipe: Recipe) -> list[torch.Tensor]:
    """Encoder outputs of three utterances, each alone."""
    outputs = []
    for number in (1, 2, 4):
        batch = recipe.batch([number])
        outputs.append(model.encode(batch["speech"], batch["speech_lengths"])[0])
    return outputs


def folders() -> list[str]:
    """A folder for each of `ENCODERS`."""
    return [f"{n:02d}_{name.replace(' ', '_')}" for n, name in enumerate(IDS)]
