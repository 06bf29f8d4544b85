"""Hidden-layer KD in training: values by hand, projections that only a resume loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch

from espnet_kd.models.layers import frames_of
from espnet_kd.tasks.mixin import ConfigurationError
from tests.ranks import run_two_ranks
from tests.tasks import by_hand
from tests.tasks.recipe import TOKENS, Recipe, load_stock, teachers, train_mode

FIRST, LAST = "encoder.encoders.0", "encoder.encoders.1"
WIDE = dict(encoder_conf=dict(output_size=16, num_blocks=2))
FAST = dict(encoder_conf=dict(input_layer="conv2d2", num_blocks=2))
MSE = dict(student=FIRST, teacher=LAST, weight=0.5)
COSINE = dict(student="encoder.after_norm", teacher=FIRST, loss="cosine", weight=2.0)


def wide(recipe: Recipe):
    return recipe.teacher("hybrid", "wide", **WIDE)


def build(recipe: Recipe, hidden: list, *models, losses=(), **changes):
    conf = dict(losses=list(losses), hidden=hidden, **changes.pop("kd_conf", {}))
    options = dict(kd_conf=conf, **teachers(*models), **changes)
    return train_mode(recipe.build("hybrid", seed=5, **options))


@torch.no_grad()
def frames_by_hand(model, name: str, speech, stride: int = 1, rate: str = "stride"):
    """The output of a layer of a stock model for one utterance, (T, D)."""
    kept = []

    def keep(module, inputs, output):
        kept.append(frames_of(output)[0])

    handle = model.get_submodule(name).register_forward_hook(keep)
    model.encode(speech[None], torch.tensor([len(speech)]))
    handle.remove()
    return by_hand.slower(kept[0], stride, rate)


def loss_by_hand(
    student, teacher, batch, conf, projection=None, strides=(1, 1), rate="stride"
) -> float:
    total, count = 0.0, 0
    weights = batch.get("kd_weight", torch.ones(len(batch["speech"])))
    for n, weight in enumerate(weights.flatten().tolist()):
        speech = batch["speech"][n, : batch["speech_lengths"][n]]
        x = frames_by_hand(student, conf["student"], speech, strides[0], rate)
        y = frames_by_hand(teacher, conf["teacher"], speech, strides[1], rate)
        if projection is not None:
            x = x @ projection.weight.detach().T + projection.bias.detach()
        for a, b in zip(x.double(), y.double()):
            if conf.get("loss") == "cosine":
                total += weight * (1 - float(a @ b / a.norm() / b.norm()))
            else:
                total += weight * float((a - b).square().mean())
        count += min(len(x), len(y))
    return total / count


@pytest.mark.parametrize("weighted", [False, True], ids=["", "kd_weight"])
def test_values_equal_those_by_hand(recipe: Recipe, weighted: bool):
    student = build(
        recipe,
        [MSE, COSINE],
        wide(recipe),
        losses=[dict(nodes="frames", weight=0.1)],
        kd_conf=dict(hard_weight=0.7),
    )
    plain = recipe.build("hybrid", seed=5, stock=True)
    stock = load_stock(wide(recipe))
    batch = recipe.batch(weights=weighted)
    expected = [
        loss_by_hand(plain, stock, batch, conf, projection)
        for conf, projection in zip((MSE, COSINE), student.kd_projections)
    ]
    for model in (student, student.eval()):
        loss, stats, _ = model(**batch)
        assert float(stats["loss_kd_hidden_0"]) == pytest.approx(expected[0], rel=1e-4)
        assert float(stats["loss_kd_hidden_1"]) == pytest.approx(expected[1], rel=1e-4)
    loss, stats, _ = train_mode(student)(**batch)
    total = 0.7 * float(stats["loss_hard"]) + 0.1 * float(stats["loss_kd_frames"])
    total += 0.5 * expected[0] + 2.0 * expected[1]
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_gradients_reach_the_layer_and_the_projection_alone(recipe: Recipe):
    student = build(recipe, [MSE], wide(recipe), kd_conf=dict(hard_weight=0.0))
    student(**recipe.batch())[0].backward()
    moved = {
        name
        for name, p in student.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {"kd_projections.0.weight", "kd_projections.0.bias"} <= moved
    assert any(name.startswith("encoder.encoders.0") for name in moved)
    assert not [n for n in moved if n.startswith(("encoder.after", "ctc", "decoder"))]
    (teacher,) = student.distillation.source.ensemble.models
    assert all(p.grad is None for p in teacher.parameters())


def test_equal_widths_need_no_projection(recipe: Recipe):
    conf = dict(student=FIRST, teacher=FIRST)
    model = recipe.teacher("hybrid")
    student = build(recipe, [conf], model)
    assert not hasattr(student, "kd_projections")
    batch = recipe.batch()
    plain = recipe.build("hybrid", seed=5, stock=True)
    expected = loss_by_hand(plain, load_stock(model), batch, conf)
    stats = student(**batch)[1]
    assert float(stats["loss_kd_hidden"]) == pytest.approx(expected, rel=1e-4)
    student.load_state_dict(torch.load(model.checkpoint))
    stats = student(**batch)[1]
    assert float(stats["loss_kd_hidden"]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rate", ["stride", "pool"])
@pytest.mark.parametrize("faster", ["teacher", "student"])
def test_frame_rates_with_a_ratio_of_two(recipe: Recipe, faster: str, rate: str):
    conf = dict(student=FIRST, teacher=FIRST)
    fast = recipe.teacher("hybrid", "fast", **FAST)
    model, changes, strides = {
        "teacher": (fast, {}, (1, 2)),
        "student": (recipe.teacher("hybrid"), FAST, (2, 1)),
    }[faster]
    student = build(recipe, [conf], model, kd_conf=dict(rate=rate), **changes)
    batch = recipe.batch()
    plain = recipe.build("hybrid", seed=5, stock=True, **changes)
    stock = load_stock(model)
    expected = loss_by_hand(plain, stock, batch, conf, strides=strides, rate=rate)
    stats = student(**batch)[1]
    assert float(stats["loss_kd_hidden"]) == pytest.approx(expected, rel=1e-4)


def test_layers_of_several_teachers(recipe: Recipe):
    """Hidden layers do not depend on tokens: another token list is fine."""
    tokens = [*TOKENS[:-1], "e", TOKENS[-1]]
    models = [recipe.teacher("hybrid", "tokens", token_list=tokens), wide(recipe)]
    second = dict(student=FIRST, teacher=LAST, teacher_index=1)
    student = build(recipe, [second], *models)
    batch, (projection,) = recipe.batch(), student.kd_projections
    plain, stock = recipe.build("hybrid", seed=5, stock=True), load_stock(models[1])
    expected = loss_by_hand(plain, stock, batch, second, projection)
    stats = student(**batch)[1]
    assert float(stats["loss_kd_hidden"]) == pytest.approx(expected, rel=1e-4)


def test_two_layers_may_resemble_the_same_one(recipe: Recipe):
    layers = FIRST, "encoder.after_norm"
    confs = [dict(student=layer, teacher=LAST) for layer in layers]
    model = recipe.teacher("hybrid", "deep", encoder_conf=dict(num_blocks=2))
    student = build(recipe, confs, model)
    batch = recipe.batch()
    plain, stock = recipe.build("hybrid", seed=5, stock=True), load_stock(model)
    for mode in (student.eval(), train_mode(student)):
        stats = mode(**batch)[1]
        for number, conf in enumerate(confs):
            expected = loss_by_hand(plain, stock, batch, conf)
            value = float(stats[f"loss_kd_hidden_{number}"])
            assert value == pytest.approx(expected, rel=1e-4)


# -------------------------------------------------------------- training, resume, DDP

OPTIONS = dict(batch_size=4, optim="adam", optim_conf=dict(lr=0.01))


def training(recipe: Recipe) -> dict:
    weight = dict(schedule="linear", start=0, end=1, steps=3)
    conf = dict(
        losses=[dict(nodes="frames")], hidden=[{**MSE, "weight": weight}, COSINE]
    )
    return dict(OPTIONS, kd_conf=conf, **teachers(wide(recipe)))


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth", **Recipe.all_types())


def test_resume_is_exact_and_stock_models_load_the_student(recipe: Recipe):
    options = training(recipe)
    whole = recipe.train("hybrid", "whole", max_epoch=2, **options)
    recipe.train("hybrid", "parts", max_epoch=1, **options)
    first = checkpoint(recipe.folder / "parts")
    parts = recipe.train("hybrid", "parts", max_epoch=2, resume=True, **options)
    states = [checkpoint(folder) for folder in (whole, parts)]
    kept = [each["optimizers"][0]["kd"] for each in states]
    assert kept[0]["updates"] == kept[1]["updates"] == 4
    assert len(kept[0]["projections"]) == 4  # two weights, two biases
    early = first["optimizers"][0]["kd"]["projections"]
    for one, other, before in zip(*(k["projections"] for k in kept), early):
        assert torch.equal(one, other) and not torch.equal(one, before)
    for name, value in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], value), name
    stats = [each["reporter"]["stats"][2]["train"] for each in states]
    for name in ("loss_kd_hidden_0", "loss_kd_hidden_1", "kd_weight_hidden_0"):
        assert stats[0][name] == stats[1][name]
    stock = recipe.build("hybrid", stock=True)
    for name in ("2epoch.pth", "valid.loss.ave.pth"):
        stock.load_state_dict(torch.load(parts / name), strict=True)
    assert states[0]["model"].keys() == stock.state_dict().keys()
    start = ["--init_param", str(parts / "2epoch.pth")]
    recipe.task("hybrid").main(
        cmd=[*recipe.options("hybrid", "again", **options), *start]
    )


def cut_to_equal_lengths(recipe: Recipe) -> None:
    """Each process takes the mean over its frames, so both need the same number."""
    rows = [line.split() for line in (recipe.data / "wav.scp").open()]
    waves = {key: soundfile.read(path) for key, path in rows}
    shortest = min(len(wave) for wave, _ in waves.values())
    for key, path in rows:
        wave, rate = waves[key]
        soundfile.write(path, wave[:shortest], rate)
    shapes = "".join(f"{key} {shortest}\n" for key, _ in rows)
    (recipe.data / "speech_shape").write_text(shapes)


def run_rank(rank: int, recipe: Recipe, command: list) -> None:
    from torch.nn.parallel import DistributedDataParallel

    end_of_training = []
    forward = DistributedDataParallel.forward

    def watched(self, *args, **kwargs):
        end_of_training[:] = [self.module]
        return forward(self, *args, **kwargs)

    DistributedDataParallel.forward = watched
    recipe.task("hybrid").main(cmd=command)
    (model,) = end_of_training
    state = [p.detach() for p in model.kd_projections.parameters()]
    torch.save((model.updates, state), recipe.folder / f"rank{rank}.pth")


def test_two_processes_train_the_projections_as_one(tmp_path: Path):
    """Forked from this one, which has imported everything already."""
    recipe = Recipe(tmp_path)
    cut_to_equal_lengths(recipe)
    options = dict(training(recipe), optim="sgd", optim_conf=dict(lr=0.05))
    one = checkpoint(recipe.train("hybrid", "one", max_epoch=2, **options))
    command = recipe.options("hybrid", "two", max_epoch=2, **options)
    command += ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    run_two_ranks(run_rank, recipe, command)
    two = checkpoint(recipe.folder / "two")
    kept = one["optimizers"][0]["kd"]
    for rank in range(2):
        updates, projections = torch.load(recipe.folder / f"rank{rank}.pth")
        assert updates == kept["updates"] == two["optimizers"][0]["kd"]["updates"] == 4
        saved = two["optimizers"][0]["kd"]["projections"]
        assert len(saved) == len(projections) == 4
        for value, of_two, of_one in zip(projections, saved, kept["projections"]):
            assert torch.equal(value, of_two)
            torch.testing.assert_close(value, of_one, rtol=1e-4, atol=1e-6)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "hidden, message",
    [
        (
            dict(student="encoder.encoder.0", teacher=FIRST),
            r"hidden\[0\].student: 'encoder.encoder.0' is not a module of .*; "
            "similar names: .*'encoder.encoders.0'",
        ),
        (
            dict(student=FIRST, teacher="encoder.encoders.2"),
            r"hidden\[0\].teacher: .* similar names: .*'encoder.encoders.1'",
        ),
        (
            dict(student="encoder.embed.conv", teacher=FIRST),
            r"hidden\[0\].student: 'encoder.embed.conv' outputs .* after the subsamp",
        ),
        (
            dict(student=FIRST, teacher="ctc.ctc_lo"),
            r"hidden\[0\].teacher: 'ctc.ctc_lo' did not run",
        ),
        (
            dict(student=FIRST, teacher=FIRST, teacher_index=1),
            r"hidden\[0\].teacher_index: 1, but the last of the 1 teachers is 0",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(recipe: Recipe, hidden: dict, message: str):
    with pytest.raises(ConfigurationError, match=f"kd_conf.{message}"):
        build(recipe, [hidden], wide(recipe))


def test_hidden_layers_need_a_teacher(recipe: Recipe):
    message = "teacher_config: kd_conf has hidden, but no teacher is given; .*hidden"
    with pytest.raises(ConfigurationError, match=message):
        build(recipe, [MSE])
