"""A student that starts from its teacher: layers and refusals."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
import yaml

from espnet_kd.compress.init_from_teacher import (
    InitConf,
    init_from_teacher,
)
from espnet_kd.models import warprnnt
from tests.tasks.recipe import NO_REPORT, TOKENS, TRAINING, Recipe, merged

NO_DROPOUT = dict(dropout_rate=0.0, positional_dropout_rate=0.0)
LONGEST_FIRST = [4, 1, 6, 2]  # as required by RNNs


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


def initialised(build, student: dict, teacher: dict, layers="even"):
    """Student, teacher and the names that were set."""
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
    student, teacher, names = initialised(build, MODELS[kind], MODELS[kind])
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
    student, teacher, _ = initialised(build, *configs)
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
    student, teacher, names = initialised(build, student_config, teacher_config, layers)
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


CONFORMER = asr(asr_encoder("conformer"))
REFUSED = {
    "deeper": (
        asr(asr_encoder("conformer", num_blocks=3)),
        CONFORMER,
        r"encoder\.encoders: the student has 3 layers, teacher 0 has 2; the",
    ),
    "wider": (
        asr(asr_encoder("conformer", 12)),
        CONFORMER,
        r"shape of encoder\.embed\.conv\.0\.weight in the student is "
        r"\(12, 1, 3, 3\), of encoder\.embed\.conv\.0\.weight in teacher 0 "
        r"\(8, 1, 3, 3\); layers are copied completely, so configure the student as",
    ),
    "narrower": (
        asr(asr_encoder("conformer")),
        asr(asr_encoder("conformer", 12)),
        r"embed\.conv\.0\.weight .* \(8, 1, 3, 3\), .* \(12, 1, 3, 3\); layers are",
    ),
    "fewer units in a layer": (
        HYBRID,
        merged(HYBRID, dict(decoder_conf=dict(linear_units=13))),
        r"decoders\.0\.feed_forward\.w_1\.weight .* \(10, 8\), .* \(13, 8\); layers",
    ),
    "narrower joint network": (
        transducer(joint=5),
        transducer(),
        r"joint_network\.lin_enc\.weight .* \(5, 8\), .* \(6, 8\); layers are",
    ),
    "more heads": (
        asr(asr_encoder("transformer", heads=4)),
        asr(asr_encoder("transformer")),
        r"self_attn\.h is 4 in the student and 2 in teacher 0; .* heads",
    ),
    "fewer, larger heads": (
        asr(asr_encoder("transformer")),
        asr(asr_encoder("transformer", heads=4)),
        r"self_attn\.h is 2 in the student and 4 in teacher 0; .* heads",
    ),
    "heads of blocks": (
        transducer(heads=4),
        transducer(),
        r"self_att\.num_heads is 4 in the student and 2 in teacher 0; .* heads",
    ),
    "kernel": (
        asr(asr_encoder("conformer", cnn_module_kernel=3)),
        asr(asr_encoder("conformer", cnn_module_kernel=5)),
        r"depthwise_conv\.weight .* \(8, 1, 3\), .* \(8, 1, 5\); layers are",
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
        "encoder is a TransformerEncoder, teacher 0's a ConformerEncoder; use",
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
        r"frontend\.logmel\.melmat .* \(129, 12\), .* \(129, 16\); layers are",
    ),
    "mel filters": (
        CONFORMER | dict(frontend_conf=dict(fmin=200)),
        CONFORMER,
        r"frontend\.logmel\.melmat of the student differs .* frontend_conf",
    ),
    "tokens": (
        CONFORMER | dict(token_list=[*TOKENS[:-1], "e", TOKENS[-1]]),
        CONFORMER,
        r"token list \(9 tokens\) is not teacher 0's \(8 tokens\); use",
    ),
    "a module more": (
        asr(asr_encoder("conformer", macaron_style=True)),
        asr(asr_encoder("conformer", macaron_style=False)),
        r"feed_forward_macaron.* has no encoder\.encoders\.0\.feed_forward_macaron",
    ),
    "a module less": (
        asr(asr_encoder("conformer", macaron_style=False)),
        asr(asr_encoder("conformer", macaron_style=True)),
        r"feed_forward_macaron.* of teacher 0 is not in the student; configure",
    ),
    "merging": (
        asr(asr_encoder("branchformer", merge_method="fixed_ave")),
        MODELS["branchformer"],
        r"merge_proj\.weight .* \(8, 8\), .* \(8, 16\); layers .* configure",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(build, case):
    student, teacher, message = REFUSED[case]
    refused(build, student, teacher, message)


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (HYBRID, [0, 2], r"layers\.encoder: teacher 0 has no layer 2; .* 0 to 1"),
        (HYBRID, [1], r"layers\.encoder: \[1\] are 1 layers, but the student has 2;"),
        (HYBRID, dict(decoder=[0, 7]), r"layers\.decoder: teacher 0 has no layer 7"),
        (CONFORMER, dict(decoder=[0]), r"layers\.decoder: \[0\] is listed, but"),
        (
            asr(rnn_encoder("vgg_rnn", num_layers=2, use_projection=False)),
            [1, 0],
            r"weight_ih_l0 in the student .*_l1 in teacher 0 .* first layer first",
        ),
    ],
)
def test_layers_refused(build, config, layers, message):
    refused(build, config, config, message, layers)


def test_a_part_that_the_teacher_lacks_is_unchanged(build, caplog):
    small = asr(asr_encoder("transformer", num_blocks=1))
    student = merged(small, asr(dict(), decoder("rnn")))
    fresh = build(student, seed=1).state_dict()
    with caplog.at_level(logging.INFO):
        model, teacher, names = initialised(build, student, HYBRID)
    for name, value in model.state_dict().items():
        if name.startswith("decoder."):
            assert name not in names and torch.equal(value, fresh[name])
        else:
            assert torch.equal(value, teacher.state_dict()[names[name]])
    message = caplog.messages[-1]
    assert "from teacher 0: frontend, encoder, ctc; encoder layers 0 of 2" in message
    assert "not changed: decoder" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(layers="odd"), "layers: 'odd' is neither even nor a list"),
        (dict(layers=[]), "layers: .* is neither"),
        (dict(layers=[0, -1]), r"layers\[1\]: -1 must be at least 0"),
        (dict(layers=[0.5]), r"layers\[0\]: 0.5 is not a whole number"),
        (dict(layers=dict(ctc=[0])), "layers: 'ctc' is not one of"),
        (dict(layers=dict(decoder="odd")), r"layers\.decoder: 'odd' is neither"),
        (dict(teacher_index=-1), "teacher_index: -1 must be at least 0"),
    ],
)
def test_bad_configuration(values, message):
    with pytest.raises(ValueError, match=message):
        InitConf(**values)
