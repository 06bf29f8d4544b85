"""A student that starts from its teacher: which layers, and what is cut of them."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest
import torch
import yaml

from espnet_kd.compress.init_from_teacher.initialisation import (
    InitConf,
    init_from_teacher,
)
from espnet_kd.models import warprnnt
from tests.tasks.recipe import NO_REPORT, TOKENS, TRAINING, Recipe, merged

NO_DROPOUT = dict(dropout_rate=0.0, positional_dropout_rate=0.0)
EVEN = InitConf()
LONGEST_FIRST = [4, 1, 6, 2]  # as RNNs want it


def asr_encoder(kind: str, width: int = 8, heads: int = 2, **conf) -> dict:
    units = {
        "transformer": dict(linear_units=10),
        "conformer": dict(linear_units=10, cnn_module_kernel=3, macaron_style=True),
        "branchformer": dict(cgmlp_linear_units=12, cgmlp_conv_kernel=3),
        "e_branchformer": dict(
            cgmlp_linear_units=12,
            cgmlp_conv_kernel=3,
            use_ffn=True,
            macaron_ffn=True,
            linear_units=10,
        ),
    }[kind]
    conf = dict(num_blocks=2, **units, **NO_DROPOUT) | conf
    return dict(
        encoder=kind, encoder_conf=dict(output_size=width, attention_heads=heads) | conf
    )


def rnn_encoder(kind: str = "rnn", **conf) -> dict:
    conf = dict(num_layers=2, hidden_size=5, output_size=6) | conf
    return dict(encoder=kind, encoder_conf=conf)


def decoder(kind: str, **conf) -> dict:
    base = {
        "transformer": dict(attention_heads=2, linear_units=10, num_blocks=2),
        "rnn": dict(hidden_size=5, num_layers=2, att_conf=dict(adim=7, aconv_chans=3)),
        "transducer": dict(hidden_size=5, num_layers=2),
    }[kind]
    return dict(decoder=kind, decoder_conf=base | conf)


def asr(encoder: dict, decoder: dict | None = None, **changes) -> dict:
    """ASR model: CTC alone, or with an attention or transducer decoder."""
    ctc_weight = 0.3 if decoder else 1.0
    config = dict(
        **encoder,
        **(decoder or {}),
        model_conf=dict(ctc_weight=ctc_weight, **NO_REPORT),
    )
    if decoder and decoder["decoder"] == "transducer":
        config["joint_net_conf"] = dict(joint_space_size=6)
    return config | changes


def transducer(block: str = "conformer", blocks: int = 2, **sizes) -> dict:
    """Model of the task asr_transducer."""
    size = dict(width=8, heads=2, linear=12, channels=6, rnn=5, joint=6) | sizes
    body = dict(
        block_type=block,
        num_blocks=blocks,
        hidden_size=size["width"],
        linear_size=size["linear"],
        heads=size["heads"],
        conv_mod_kernel_size=size.get("kernel", 3),
    )
    return dict(
        encoder_conf=dict(
            main_conf=dict(pos_wise_act_type="swish", conv_mod_act_type="swish")
            | size.get("main", {}),
            input_conf=dict(
                vgg_like=False,
                conv_size=size["channels"],
                subsampling_factor=size.get("subsampling", 4),
            ),
            body_conf=size.get("body", [body]),
        ),
        decoder="rnn",
        decoder_conf=dict(
            embed_size=5,
            hidden_size=size["rnn"],
            rnn_type=size.get("cell", "lstm"),
            num_layers=2,
        ),
        joint_network_conf=dict(joint_space_size=size["joint"]),
        model_conf=dict(auxiliary_ctc_weight=0.3),
    )


HYBRID = asr(asr_encoder("transformer"), decoder("transformer"))
MODELS = {
    "transformer": HYBRID,
    "conformer": asr(asr_encoder("conformer"), decoder("transducer")),
    "branchformer": asr(asr_encoder("branchformer")),
    "e_branchformer": asr(asr_encoder("e_branchformer")),
    "rnn": asr(rnn_encoder(), decoder("rnn")),
    "vgg_rnn": asr(rnn_encoder("vgg_rnn", use_projection=False, rnn_type="gru")),
    "transducer": transducer(),
    "branchformer blocks": transducer("branchformer", cell="gru"),
    "ebranchformer blocks": transducer("ebranchformer"),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    warprnnt.install()
    return Recipe(tmp_path_factory.mktemp("init") / "recipe")


@pytest.fixture(scope="module")
def build(recipe: Recipe):
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    parsers = {task: task.get_parser() for task in (ASRTask, ASRTransducerTask)}

    def make(config: dict, seed: int = 0) -> torch.nn.Module:
        task = ASRTransducerTask if "joint_network_conf" in config else ASRTask
        path = recipe.folder / "config.yaml"
        path.write_text(yaml.safe_dump(merged(TRAINING, config)))
        options = ["--config", str(path), "--output_dir", str(recipe.folder)]
        torch.manual_seed(seed)
        model = task.build_model(parsers[task].parse_args(options)).eval()
        for name, value in model.state_dict().items():
            if value.dim() == 1 and "mvn" not in name:  # norms, biases, statistics
                value.uniform_(0.5, 1.5)
        return model

    return make


def grown(build, student: dict, teacher: dict, layers="even"):
    """Student, teacher and what was set, by name."""
    models = build(student, seed=1), build(teacher, seed=2)
    names = init_from_teacher(*models, InitConf(layers=layers), "teacher 0")
    return *models, names


def refused(build, student: dict, teacher: dict, message: str, layers="even"):
    model, other = build(student, seed=1), build(teacher, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        init_from_teacher(model, other, InitConf(layers=layers), "teacher 0")
    assert_equal(model.state_dict(), before)


def assert_equal(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


@torch.no_grad()
def loss(model: torch.nn.Module, recipe: Recipe) -> torch.Tensor:
    torch.manual_seed(0)
    return model(**recipe.batch(LONGEST_FIRST))[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_student_of_the_teachers_size_becomes_the_teacher(build, recipe, kind):
    student, teacher, names = grown(build, MODELS[kind], MODELS[kind])
    assert_equal(student.state_dict(), teacher.state_dict())
    assert names == {name: name for name in student.state_dict()}
    assert torch.equal(loss(student, recipe), loss(teacher, recipe))


def test_feature_statistics_are_the_teachers(build, recipe):
    configs = []
    for seed in (0, 1):
        path = recipe.folder / f"stats{seed}.npz"
        total = np.random.default_rng(seed).uniform(1, 2, 16)
        np.savez(path, count=10, sum=total, sum_square=3 * total)
        conf = dict(stats_file=str(path))
        configs.append(HYBRID | dict(normalize="global_mvn", normalize_conf=conf))
    student, teacher, _ = grown(build, *configs)
    assert torch.equal(student.normalize.mean, teacher.normalize.mean)
    assert_equal(student.state_dict(), teacher.state_dict())


DEEP_RNN = dict(num_layers=4, subsample=[2, 1, 1, 1])
# Teacher, student, layers, patterns of the stacks with the layers that are taken.
LAYERS = {
    "first and last": (
        asr(asr_encoder("conformer", num_blocks=5)),
        asr(asr_encoder("conformer", num_blocks=3)),
        "even",
        {r"(encoder\.encoders\.)(\d+)(.*)": [0, 2, 4]},
    ),
    "one layer": (
        asr(asr_encoder("e_branchformer", num_blocks=3)),
        asr(asr_encoder("e_branchformer", num_blocks=1)),
        "even",
        {r"(encoder\.encoders\.)(\d+)(.*)": [0]},
    ),
    "a list, the decoder evenly": (
        asr(asr_encoder("transformer", num_blocks=4), decoder("transformer")),
        asr(
            asr_encoder("transformer", num_blocks=3),
            decoder("transformer", num_blocks=1),
        ),
        [3, 0, 2],
        {
            r"(encoder\.encoders\.)(\d+)(.*)": [3, 0, 2],
            r"(decoder\.decoders\.)0(.*)": [],
        },
    ),
    "decoder listed": (
        asr(asr_encoder("transformer", num_blocks=3), decoder("transformer")),
        HYBRID,
        dict(decoder=[1, 0]),
        {
            r"(encoder\.encoders\.)(\d+)(.*)": [0, 2],
            r"(decoder\.decoders\.)(\d+)(.*)": [1, 0],
        },
    ),
    "RNNP and cells": (
        asr(rnn_encoder(**DEEP_RNN), decoder("rnn", num_layers=3)),
        asr(rnn_encoder(subsample=[2, 1]), decoder("rnn")),
        dict(encoder=[0, 2]),
        {
            r"(encoder\.enc\.0\.\w+?)(\d+)(\..*)": [0, 2],
            r"(decoder\.decoder\.)(\d+)(.*)": [0, 2],
        },
    ),
    "layers of one LSTM": (
        asr(rnn_encoder("vgg_rnn", num_layers=3, use_projection=False)),
        asr(rnn_encoder("vgg_rnn", num_layers=2, use_projection=False)),
        "even",
        {r"(encoder\.enc\.1\.nbrnn\.\w+_l)(\d+)(.*)": [0, 2]},
    ),
    "blocks and predictor": (
        transducer(blocks=4),
        merged(transducer(blocks=2), dict(decoder_conf=dict(num_layers=1))),
        [1, 3],
        {r"(encoder\.encoders\.blocks\.)(\d+)(.*)": [1, 3]},
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers(build, recipe, case):
    teacher_config, student_config, layers, stacks = LAYERS[case]
    student, teacher, names = grown(build, student_config, teacher_config, layers)
    source, seen = teacher.state_dict(), set()
    for name, value in student.state_dict().items():
        origin = name
        for pattern, taken in stacks.items():
            match = re.fullmatch(pattern, name)
            if match and taken:
                origin = f"{match[1]}{taken[int(match[2])]}{match[3]}"
                seen.add(pattern)
        assert names[name] == origin
        assert torch.equal(value, source[origin]), name
    assert seen == {pattern for pattern, taken in stacks.items() if taken}
    assert torch.isfinite(loss(student, recipe))


def leading(value: torch.Tensor, shape) -> torch.Tensor:
    return value[tuple(slice(size) for size in shape)]


# Composite tensors: the teacher's shape in factors, and the leading part of each.
HEADS = [  # 3 heads of 4 units, width 12 -> 2 heads of 4, width 8
    (r"linear_[qkv]\.weight|linear_pos\.weight", (3, 4, 12), (2, 4, 8)),
    (r"linear_[qkv]\.bias", (3, 4), (2, 4)),
    (r"linear_out\.weight", (12, 3, 4), (8, 2, 4)),
]
UNITS = [  # 2 heads of 6 units, width 12 -> 2 heads of 4, width 8
    (r"linear_[qkv]\.weight|linear_pos\.weight", (2, 6, 12), (2, 4, 8)),
    (r"linear_[qkv]\.bias", (2, 6), (2, 4)),
    (r"linear_out\.weight", (12, 2, 6), (8, 2, 4)),
]
GLU = [
    (r"pointwise_conv1\.weight", (2, 12, 12, 1), (2, 8, 8, 1)),
    (r"pointwise_conv1\.bias", (2, 12), (2, 8)),
]
BRANCHES = [
    (r"channel_proj1\.0\.weight", (2, 9, 12), (2, 6, 8)),
    (r"channel_proj1\.0\.bias", (2, 9), (2, 6)),
    (r"merge_proj\.weight", (12, 2, 12), (8, 2, 8)),
    (r"depthwise_conv_(fusion|mod\.conv)\.weight", (2, 12, 1, 3), (2, 8, 1, 3)),
    (r"depthwise_conv_(fusion|mod\.conv)\.bias", (2, 12), (2, 8)),
]
ASR_INPUT = [(r"embed\.out(\.0)?\.weight", (12, 12, 3), (8, 8, 3))]
BLOCK_INPUT = [(r"embed\.output\.weight", (12, 7, 3), (8, 6, 3))]
WIDE_CGMLP = dict(cgmlp_linear_units=18)
WIDE_BLOCKS = dict(width=12, linear=18, channels=7, rnn=9, joint=8)


def gated(gates: int, wide: int, narrow: int, inputs: dict[str, tuple]) -> list:
    """Recurrent layers: input sizes by pattern of the tensor's name."""
    rows = [(r"bias_[ih]h.*", (gates, wide), (gates, narrow))]
    rows += [(r"weight_hh.*", (gates, wide, wide), (gates, narrow, narrow))]
    for name, (large, small) in inputs.items():
        rows.append((name, (gates, wide, *large), (gates, narrow, *small)))
    return rows


PREDICTOR = {r"rnn\.0\.weight_ih_l0": ((5,), (5,)), r"1\.weight_ih_l0": ((9,), (5,))}
NARROWER = {
    "heads": (asr(asr_encoder("transformer", 12, 3)), HEADS + ASR_INPUT),
    "units of heads": (asr(asr_encoder("transformer", 12)), UNITS + ASR_INPUT),
    "conformer": (asr(asr_encoder("conformer", 12, 3)), HEADS + GLU + ASR_INPUT),
    "branchformer": (
        asr(asr_encoder("branchformer", 12, 3, **WIDE_CGMLP)),
        HEADS + BRANCHES + ASR_INPUT,
    ),
    "e_branchformer": (
        asr(asr_encoder("e_branchformer", 12, **WIDE_CGMLP)),
        UNITS + BRANCHES + ASR_INPUT,
    ),
    "transducer": (
        transducer(**WIDE_BLOCKS, heads=3),
        HEADS + GLU + BLOCK_INPUT + gated(4, 9, 5, PREDICTOR),
    ),
    "branchformer blocks": (
        transducer("branchformer", **WIDE_BLOCKS, cell="gru"),
        UNITS + BRANCHES + BLOCK_INPUT + gated(3, 9, 5, PREDICTOR),
    ),
    "ebranchformer blocks": (
        transducer("ebranchformer", **WIDE_BLOCKS),
        UNITS + BRANCHES + BLOCK_INPUT + gated(4, 9, 5, PREDICTOR),
    ),
    "vgg_rnn": (
        asr(
            rnn_encoder("vgg_rnn", use_projection=False, rnn_type="gru", hidden_size=9)
        ),
        [(r"l_last\.weight", (6, 2, 9), (6, 2, 5))]
        + gated(
            3,
            9,
            5,
            {
                r"weight_ih_l0.*": ((512,), (512,)),
                r"weight_ih_l1.*": ((2, 9), (2, 5)),
            },
        ),
    ),
}


@pytest.mark.parametrize("case", NARROWER)
def test_cuts_by_hand(build, recipe, case):
    config, table = NARROWER[case]
    kind = {"heads": "ctc", "units of heads": "ctc", "conformer": "c"}.get(case)
    small = {
        "ctc": asr(asr_encoder("transformer")),
        "c": asr(asr_encoder("conformer")),
        None: MODELS.get(case),
    }[kind]
    student, teacher, _ = grown(build, small, config)
    source, unused = teacher.state_dict(), {row[0] for row in table}
    for name, value in student.state_dict().items():
        rows = [row for row in table if re.search(f"(^|[._])({row[0]})$", name)]
        for pattern, shape, kept in rows:
            expected = leading(source[name].view(shape), kept).reshape(value.shape)
            unused.discard(pattern)
        if not rows:
            expected = leading(source[name], value.shape)
        assert torch.equal(value, expected), name
    assert not {p for p in unused if not p.startswith(("depthwise_conv_", "linear_"))}
    assert torch.isfinite(loss(student, recipe))


def test_rnn_decoder_reads_embedding_and_context(build):
    wide = asr(
        rnn_encoder(hidden_size=9, output_size=8),
        decoder("rnn", hidden_size=7, att_conf=dict(adim=9, aconv_chans=4)),
    )
    student, teacher, _ = grown(build, MODELS["rnn"], wide)
    ours, theirs = student.state_dict(), teacher.state_dict()
    name = "decoder.decoder.0.weight_ih"  # (4 gates x 7) x (7 of embedding + 8)
    weight = theirs[name].view(4, 7, 15)[:, :5]
    expected = torch.cat([weight[..., :5], weight[..., 7:13]], -1).reshape(20, 11)
    assert torch.equal(ours[name], expected)
    name = "encoder.enc.0.bt1.weight"
    expected = theirs[name].view(8, 2, 9)[:6, :, :5].reshape(6, 10)
    assert torch.equal(ours[name], expected)
    name = "decoder.att_list.0.mlp_att.weight"
    assert torch.equal(ours[name], theirs[name][:7, :3])


# A model widened so that it computes the same: of each dimension its factors, which of
# them grows, and how. Vectors that a layer norm sees are doubled, which keeps mean and
# variance; other units that are added are noise, and nothing listens to them.
def double(*shape: int, at: int = 0) -> tuple:
    return shape, at, "double"


def noise(*shape: int, at: int = 0) -> tuple:
    return shape, at, "noise"


def deaf(*shape: int, at: int = 0) -> tuple:
    return shape, at, "deaf"


def widened(value: torch.Tensor, dims: list) -> torch.Tensor:
    for dim, rule in enumerate(dims):
        if rule is None:
            continue
        shape, at, how = rule
        before, after = value.shape[:dim], value.shape[dim + 1 :]
        split = value.reshape(*before, *shape, *after)
        added = dict(double=split, noise=torch.randn_like(split), deaf=0 * split)[how]
        value = torch.cat([split, added], dim + at).reshape(*before, -1, *after)
    return value


D, H, K, U, P, R = 8, 2, 4, 6, 5, 6  # width, heads x units, half a cgMLP, RNN, joint
RULES = [
    (r"linear_([qkv]|pos)\.weight", [noise(H, K), deaf(D)]),
    (r"linear_[qkv]\.bias", [noise(H, K)]),
    (r"pos_bias_[uv]", [noise(H), None]),
    (r"linear_out\.weight", [double(D), deaf(H, K)]),
    (r"w_1\.weight", [noise(-1), deaf(D)]),
    (r"w_1\.bias", [noise(-1)]),
    (r"w_2\.weight", [double(D), deaf(-1)]),
    (r"pointwise_conv1\.weight", [double(2, D, at=1), deaf(D)]),
    (r"pointwise_conv1\.bias", [double(2, D, at=1)]),
    (r"pointwise_conv2\.weight", [double(D), deaf(D)]),
    (r"depthwise_conv_(fusion|mod\.conv)\.(weight|bias)", [double(2, D, at=1)]),
    (r"channel_proj1\.0\.weight", [double(2, U, at=1), deaf(D)]),
    (r"channel_proj1\.0\.bias", [double(2, U, at=1)]),
    (r"channel_proj2\.weight", [double(D), deaf(U)]),
    (r"merge_proj\.weight", [double(D), deaf(2, D, at=1)]),
    (r"conv\.0\.(weight|bias)", [noise(-1)]),
    (r"conv\.2\.weight", [noise(-1), deaf(-1)]),
    (r"conv\.2\.bias", [noise(-1)]),
    (r"embed\.out(\.0)?\.weight", [double(D), deaf(D, 3)]),
    (r"embed\.output\.weight", [double(D), deaf(6, 3)]),
    (r"(ctc_lo|ctc_lin)\.weight", [None, deaf(D)]),
    (r"lin_enc\.weight", [noise(R), deaf(D)]),
    (r"lin_dec\.weight", [noise(R), deaf(P)]),
    (r"lin_(enc|dec)\.bias", [noise(R)]),
    (r"lin_out\.weight", [None, deaf(R)]),
    (r"decoder\.rnn\.0\.weight_ih_l0", [noise(-1, P, at=1)]),
    (r"decoder\.rnn\.\d\.weight_[ih]h_l0", [noise(-1, P, at=1), deaf(P)]),
    (r"decoder\.rnn\.\d\.bias_[ih]h_l0", [noise(-1, P, at=1)]),
    (r"lin_out\.bias|ctc_lo\.bias|ctc_lin\.bias|melmat|num_batches.*", []),
    (r"decoder\.embed\.weight", []),
    (r"nbrnn\.weight_ih_l0\w*", [noise(-1, P, at=1)]),
    (r"nbrnn\.weight_ih_l1\w*", [noise(-1, P, at=1), deaf(2, P, at=1)]),
    (r"(bi)?rnn\d\.weight_ih\w*", [noise(-1, P, at=1)]),
    (r"(bi|nb)?rnn\d?\.weight_hh\w*", [noise(-1, P, at=1), deaf(P)]),
    (r"(bi|nb)?rnn\d?\.bias\w*", [noise(-1, P, at=1)]),
    (r"(bt\d|l_last)\.weight", [None, deaf(2, P, at=1)]),
    (r"(bt\d|l_last)\.bias|conv\d_\d.*", []),
    # All others are vectors of the width, or depthwise convolutions.
    (r"(norm\w*|conv|depthwise_conv|w_2|linear_out|out|out\.0|output)\.\w+", None),
    (r"(merge_proj|channel_proj2|pointwise_conv2)\.bias", None),
]
DOUBLED = {
    "conformer": (
        asr(asr_encoder("conformer", rel_pos_type="latest")),
        asr(asr_encoder("conformer", 16, 4, linear_units=20, rel_pos_type="latest")),
    ),
    "branchformer": (
        MODELS["branchformer"],
        asr(asr_encoder("branchformer", 16, 4, cgmlp_linear_units=24)),
    ),
    "e_branchformer": (
        MODELS["e_branchformer"],
        asr(
            asr_encoder("e_branchformer", 16, 4, cgmlp_linear_units=24, linear_units=20)
        ),
    ),
    "RNNP": (asr(rnn_encoder()), asr(rnn_encoder(hidden_size=10))),
    "vgg_rnn": (
        MODELS["vgg_rnn"],
        asr(
            rnn_encoder("vgg_rnn", use_projection=False, rnn_type="gru", hidden_size=10)
        ),
    ),
    **{
        f"{block} blocks": (
            transducer(block, cell=cell),
            transducer(
                block,
                cell=cell,
                width=16,
                heads=4,
                linear=24,
                channels=12,
                rnn=10,
                joint=12,
            ),
        )
        for block, cell in (
            ("conformer", "lstm"),
            ("branchformer", "gru"),
            ("ebranchformer", "lstm"),
        )
    },
}


@pytest.mark.parametrize("case", DOUBLED)
@torch.no_grad()
def test_what_nothing_listens_to_is_cut_away(build, recipe, case):
    small, large = DOUBLED[case]
    reference, teacher, student = build(small), build(large), build(small, seed=1)
    for name, value in reference.state_dict().items():
        if "linear_pos" in name:
            value.zero_()  # encodings of positions of another width are others
        name_rules = [r for p, r in RULES if re.search(f"(^|[._])({p})$", name)]
        rule = [double(-1)] if name_rules[0] is None else name_rules[0]
        target = teacher.state_dict()[name]
        wide = value if value.shape == target.shape else widened(value, rule)
        assert wide.shape == target.shape, name
        target.copy_(wide)
    if case in ("conformer", "branchformer", "e_branchformer"):
        # ESPnet multiplies by the root of the width, which no cut keeps.
        embed = teacher.encoder.embed  # in which ESPnet 202609 took `out` apart
        positions = embed.pos_enc if hasattr(embed, "pos_enc") else embed.out[1]
        positions.xscale = math.sqrt(D)
    init_from_teacher(student, teacher, EVEN, "teacher 0")
    assert_equal(student.state_dict(), reference.state_dict())
    batch = recipe.batch(LONGEST_FIRST)
    speech = batch["speech"], batch["speech_lengths"]
    ours, theirs = student.encode(*speech)[0], teacher.encode(*speech)[0]
    torch.testing.assert_close(ours, theirs[..., : ours.size(-1)], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        loss(student, recipe), loss(teacher, recipe), rtol=1e-4, atol=1e-5
    )


def test_feed_forward_units_of_a_decoder(build, recipe):
    units = dict(encoder_conf=dict(linear_units=16), decoder_conf=dict(linear_units=13))
    student, teacher = build(HYBRID, seed=1), build(merged(HYBRID, units), seed=2)
    for name, value in teacher.state_dict().items():
        if name.endswith("w_2.weight"):
            value[:, 10:] = 0
    init_from_teacher(student, teacher, EVEN, "teacher 0")
    torch.testing.assert_close(loss(student, recipe), loss(teacher, recipe))


CONFORMER = asr(asr_encoder("conformer"))
REFUSED = {
    "deeper": (
        asr(asr_encoder("conformer", num_blocks=3)),
        CONFORMER,
        r"encoder\.encoders: the student has 3 layers, teacher 0 has 2; give",
    ),
    "wider": (
        asr(asr_encoder("conformer", 12)),
        CONFORMER,
        r"embed\.conv\.0\.weight .* differ in dimension 0: 12 is wider than 8; the",
    ),
    "more heads": (
        asr(asr_encoder("transformer", heads=4)),
        asr(asr_encoder("transformer")),
        r"linear_q\.weight .* differ in dimension 0: 4 is wider than 2; .* heads",
    ),
    "fewer, larger heads": (
        asr(asr_encoder("transformer")),
        asr(asr_encoder("transformer", heads=4)),
        r"linear_q\.weight .* differ in dimension 0: 4 is wider than 2; .* heads",
    ),
    "kernel": (
        asr(asr_encoder("conformer", cnn_module_kernel=3)),
        asr(asr_encoder("conformer", cnn_module_kernel=5)),
        r"depthwise_conv\.weight .* differ in dimension 2: kernel size 3 and 5; give",
    ),
    "subsampling": (
        asr(asr_encoder("conformer", input_layer="conv2d2")),
        CONFORMER,
        r"encoder\.embed of the student is a Conv2dSubsampling2, .* of teacher 0 a C",
    ),
    "subsampling of an RNN": (
        asr(rnn_encoder(subsample=[2, 1])),
        asr(rnn_encoder(subsample=[2, 2])),
        r"encoder\.enc\.0\.subsample is 2 in the student and 4 in teacher 0; give",
    ),
    "subsampling of blocks": (
        transducer(subsampling=6),
        transducer(),
        r"encoder\.embed\.subsampling_factor is 6 in the student and 4 in teacher 0",
    ),
    "hop": (
        CONFORMER | dict(frontend_conf=dict(hop_length=160)),
        CONFORMER,
        r"frontend\.hop_length is 160 in the student and 80 in teacher 0",
    ),
    "encoder": (
        asr(asr_encoder("transformer")),
        CONFORMER,
        "encoder is a TransformerEncoder, that of teacher 0 a ConformerEncoder; use",
    ),
    "blocks": (
        transducer("conformer"),
        transducer("branchformer"),
        r"blocks\.0 of the student is a Conformer, .* of teacher 0 a Branchformer;",
    ),
    "positions": (
        asr(
            asr_encoder(
                "conformer",
                pos_enc_layer_type="abs_pos",
                selfattention_layer_type="selfattn",
            )
        ),
        CONFORMER,
        "is a MultiHeadedAttention, .* a LegacyRelPosition.*; configure",
    ),
    "activation": (
        asr(asr_encoder("conformer", activation_type="relu")),
        CONFORMER,
        "activation of the student is a ReLU, .* of teacher 0 a Swish; configure",
    ),
    "cells": (
        transducer(cell="gru"),
        transducer(),
        r"decoder\.rnn\.0 of the student is a GRU, .* of teacher 0 a LSTM; configure",
    ),
    "features": (
        CONFORMER | dict(frontend_conf=dict(n_mels=12)),
        CONFORMER,
        r"frontend\.logmel\.melmat .* dimension 1: features 12 and 16; give",
    ),
    "mel filters": (
        CONFORMER | dict(frontend_conf=dict(fmin=200)),
        CONFORMER,
        r"frontend\.logmel\.melmat of the student differs .* frontend_conf",
    ),
    "tokens": (
        CONFORMER | dict(token_list=[*TOKENS[:-1], "e", TOKENS[-1]]),
        CONFORMER,
        r"token list \(9 tokens\) is not that of teacher 0 \(8 tokens\); use",
    ),
    "a module more": (
        asr(asr_encoder("conformer", macaron_style=True)),
        asr(asr_encoder("conformer", macaron_style=False)),
        r"feed_forward_macaron.* has no encoder\.encoders\.0\.feed_forward_macaron",
    ),
    "a module less": (
        asr(asr_encoder("conformer", macaron_style=False)),
        asr(asr_encoder("conformer", macaron_style=True)),
        r"feed_forward_macaron.* of teacher 0 has no place in the student; configure",
    ),
    "merging": (
        asr(asr_encoder("branchformer", merge_method="fixed_ave")),
        MODELS["branchformer"],
        r"merge_proj\.weight .* are made of different parts; configure",
    ),
    "structure that is not known": (
        asr(
            asr_encoder(
                "branchformer",
                attention_layer_type="fast_selfattn",
                pos_enc_layer_type="abs_pos",
            )
        ),
        asr(
            asr_encoder(
                "branchformer",
                16,
                4,
                attention_layer_type="fast_selfattn",
                pos_enc_layer_type="abs_pos",
            )
        ),
        r"attn\.query\.weight .* sizes \(of unknown structure\) 8 and 16; give",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(build, case):
    student, teacher, message = REFUSED[case]
    refused(build, student, teacher, message)


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (HYBRID, [0, 2], r"layers\.encoder: teacher 0 has no layer 2, .* 0 to 1"),
        (HYBRID, [1], r"layers\.encoder: \[1\] are 1 layers, but the student has 2;"),
        (HYBRID, dict(decoder=[0, 7]), r"layers\.decoder: teacher 0 has no layer 7"),
        (CONFORMER, dict(decoder=[0]), r"layers\.decoder: \[0\] is listed, but"),
        (
            asr(rnn_encoder("vgg_rnn", num_layers=2, use_projection=False)),
            [1, 0],
            r"weight_ih_l0 of the student .* different parts; .* first layer in its",
        ),
    ],
)
def test_layers_refused(build, config, layers, message):
    refused(build, config, config, message, layers)


def test_a_part_that_the_teacher_has_not_keeps_its_start(build, caplog):
    small = asr(asr_encoder("transformer", num_blocks=1, linear_units=6))
    student = merged(small, asr(dict(), decoder("rnn")))
    fresh = build(student, seed=1).state_dict()
    with caplog.at_level(logging.INFO):
        model, teacher, names = grown(build, student, HYBRID)
    for name, value in model.state_dict().items():
        if name.startswith("decoder."):
            assert name not in names and torch.equal(value, fresh[name])
        else:
            origin = leading(teacher.state_dict()[names[name]], value.shape)
            assert torch.equal(value, origin)
    message = caplog.messages[-1]
    assert "from teacher 0: frontend, encoder, ctc; encoder layers 0 of 2" in message
    assert "sizes cut: 10 to 6; left at their own start: decoder" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(layers="odd"), "layers: 'odd' is neither even nor a list"),
        (dict(layers=[]), "layers: .* is neither"),
        (dict(layers=[0, -1]), r"layers\[1\]: -1 must be at least 0"),
        (dict(layers=[0.5]), r"layers\[0\]: 0.5 is not a whole number"),
        (dict(layers=dict(ctc=[0])), "layers: 'ctc' is none of"),
        (dict(layers=dict(decoder="odd")), r"layers\.decoder: 'odd' is neither"),
        (dict(teacher_index=-1), "teacher_index: -1 must be at least 0"),
    ],
)
def test_bad_configuration(values, message):
    with pytest.raises(ValueError, match=message):
        InitConf(**values)
