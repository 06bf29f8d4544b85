"""`kd_conf.init_from_teacher` through ESPnet's own building and training of a model."""

from __future__ import annotations

import pytest
import torch
import yaml

from espnet_kd.tasks.mixin import ConfigurationError
from tests.tasks.recipe import CONFORMER, Recipe, load_stock, teachers

DEEP = {
    "hybrid": dict(encoder_conf=dict(num_blocks=3)),
    "asr_transducer": dict(
        encoder_conf=dict(body_conf=[dict(CONFORMER["body_conf"][0], num_blocks=3)])
    ),
}
LAYERS = {"hybrid": "encoder.encoders", "asr_transducer": "encoder.encoders.blocks"}
SHALLOW = {
    "hybrid": dict(encoder_conf=dict(num_blocks=2)),
    "asr_transducer": dict(
        encoder_conf=dict(body_conf=[dict(CONFORMER["body_conf"][0], num_blocks=2)])
    ),
}


def init(**conf) -> dict:
    return dict(kd_conf=dict(init_from_teacher=conf))


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("true_lengths", [False, True])
def test_the_first_and_the_last_layer(recipe: Recipe, kind: str, true_lengths: bool):
    teacher = recipe.teacher(kind, **DEEP[kind])
    changes = init(layers="even")
    changes["kd_conf"]["true_lengths"] = true_lengths
    student = recipe.build(kind, **SHALLOW[kind], **teachers(teacher), **changes)
    theirs, ours = load_stock(teacher).state_dict(), student.state_dict()
    layers, taken = LAYERS[kind], {"0": "0", "1": "2"}
    for name, value in ours.items():
        if name.startswith(f"{layers}."):
            number, rest = name[len(layers) + 1 :].split(".", 1)
            name = f"{layers}.{taken[number]}.{rest}"
        assert torch.equal(value, theirs[name]), name


def test_an_initialised_student_is_stock_without_kd(recipe: Recipe):
    from espnet2.asr.espnet_model import ESPnetASRModel

    teacher = recipe.teacher("hybrid", **DEEP["hybrid"])
    student = recipe.build("hybrid", **teachers(teacher), **init(layers=[1]))
    assert type(student) is ESPnetASRModel


def test_training_from_a_teacher_and_with_it(recipe: Recipe):
    """A learning rate of 0 keeps the second teacher's second layer."""
    kind, deep = "hybrid", DEEP["hybrid"]
    models = [recipe.teacher(kind, name, **deep) for name in ("deep1", "deep2")]
    changes = init(layers=[1], teacher_index=1)
    changes["kd_conf"]["losses"] = [dict(nodes="frames")]
    folder = recipe.train(
        kind, "initialised", **teachers(*models), **changes, optim_conf=dict(lr=0.0)
    )
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["kd_conf"]["init_from_teacher"] == dict(layers=[1], teacher_index=1)
    trained = torch.load(folder / "latest.pth")
    theirs = load_stock(models[1]).state_dict()
    name = "feed_forward.w_1.weight"
    ours = trained[f"encoder.encoders.0.{name}"]
    assert torch.equal(ours, theirs[f"encoder.encoders.1.{name}"])


@pytest.mark.parametrize(
    "conf, message",
    [
        (dict(layers="odd"), "kd_conf.init_from_teacher: layers: 'odd' is neither"),
        (dict(depth=2), "kd_conf.init_from_teacher.depth: no such field; known"),
        (dict(teacher_index=1), "teacher_index: 1, but teacher_config has 1 teachers"),
        (dict(layers=[7]), "init_from_teacher.*7"),
    ],
)
def test_refusals(recipe: Recipe, conf: dict, message: str):
    teacher = recipe.teacher("hybrid", **DEEP["hybrid"])
    with pytest.raises(ConfigurationError, match=message):
        recipe.build("hybrid", **teachers(teacher), **init(**conf))


def test_other_normalisation_is_refused(recipe: Recipe):
    """Normalisation by utterance has no tensors that could be missing."""
    teacher = recipe.teacher("hybrid", **DEEP["hybrid"])
    message = "normalize of the student is UtteranceMVN, of .* NoneType; give the stud"
    with pytest.raises(ConfigurationError, match=message):
        recipe.build("hybrid", normalize="utterance_mvn", **teachers(teacher), **init())


def test_it_needs_a_teacher(recipe: Recipe):
    message = "teacher_config: kd_conf has init_from_teacher, but no teacher"
    with pytest.raises(ConfigurationError, match=message):
        recipe.build("hybrid", **init())
