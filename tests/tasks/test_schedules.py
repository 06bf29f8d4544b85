"""Schedules of `kd_conf` in training: updates are counted, and survive a resume."""

import logging
import math
from pathlib import Path

import pytest
import torch

from espnet_kd.config.schedules import Schedule
from espnet_kd.tasks.trainer import follow
from tests.tasks.recipe import Recipe, teachers, train_mode

WEIGHT = dict(schedule="linear", start=0.2, end=1.0, steps=3, begin=1)
TEMPERATURE = dict(schedule="cosine", start=4.0, end=1.0, steps=5)
HARD = dict(schedule="linear", start=1.0, end=0.4, steps=6)
CONF = dict(
    losses=[
        dict(nodes="frames", weight=WEIGHT, temperature=TEMPERATURE),
        dict(nodes="tokens", weight=0.3),
    ],
    hard_weight=HARD,
)
# Eight utterances are four batches and two updates in an epoch.
OPTIONS = dict(
    batch_size=2,
    accum_grad=2,
    optim="adam",
    optim_conf=dict(lr=0.003),
    scheduler="warmuplr",
    scheduler_conf=dict(warmup_steps=5),
    encoder_conf=dict(dropout_rate=0.1),
)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth", **Recipe.all_types())


def test_updates_are_counted_and_a_resume_is_exact(recipe: Recipe):
    options = dict(OPTIONS, kd_conf=CONF, **teachers(recipe.teacher("hybrid")))
    whole = recipe.train("hybrid", "scheduled", max_epoch=3, **options)
    recipe.train("hybrid", "resumed", max_epoch=1, **options)
    resumed = recipe.train("hybrid", "resumed", max_epoch=3, resume=True, **options)
    states = [checkpoint(folder) for folder in (whole, resumed)]
    assert [each["optimizers"][0]["kd"]["updates"] for each in states] == [6, 6]
    for name, value in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], value), name
    for epoch in (1, 2, 3):
        expected = {
            "kd_weight_frames": [0.2, 0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0, 1.0],
            "kd_temperature_frames": [
                2.5 + 1.5 * math.cos(math.pi * n / 5) for n in range(6)
            ],
            "kd_hard_weight": [1.0 - 0.1 * n for n in range(6)],
        }
        for name, by_update in expected.items():
            mean = sum(by_update[2 * epoch - 2 : 2 * epoch]) / 2
            for state in states:
                train = state["reporter"]["stats"][epoch]["train"]
                assert train[name] == pytest.approx(mean, rel=1e-5), (epoch, name)
        stats = [each["reporter"]["stats"][epoch] for each in states]
        constant = [n for n in stats[0]["train"] if n.startswith("kd_")]
        assert set(constant) == set(expected)  # the weight of 0.3 does not change
        assert not [n for n in stats[0]["valid"] if n.startswith("kd_")]
        for name in ("loss", "loss_kd_frames", "loss_kd_tokens"):
            assert stats[0]["train"][name] == stats[1]["train"][name]


def test_the_loss_uses_the_current_numbers(recipe: Recipe):
    options = teachers(recipe.teacher("hybrid"))
    student = train_mode(recipe.build("hybrid", seed=5, kd_conf=CONF, **options))
    batch = recipe.batch()
    for updates in (0, 2, 100):
        student.updates = updates
        loss, stats, _ = student(**batch)
        now = dict(
            weight=Schedule(**WEIGHT).at(updates),
            temperature=Schedule(**TEMPERATURE).at(updates),
        )
        plain = dict(
            losses=[dict(nodes="frames", **now), CONF["losses"][1]],
            hard_weight=Schedule(**HARD).at(updates),
        )
        other = train_mode(recipe.build("hybrid", seed=5, kd_conf=plain, **options))
        expected, expected_stats, _ = other(**batch)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for name, value in expected_stats.items():
            if value is not None:
                assert float(stats[name]) == pytest.approx(float(value), rel=1e-6)
        assert not [name for name in expected_stats if name.startswith("kd_")]


# ---------------------------------------------------------------------- optimiser


class Updated(torch.nn.Linear):
    updates = 0
    pruner = None


def followed(optimizer_class: type, **options) -> tuple:
    student = Updated(2, 1)
    optimizer = optimizer_class(student.parameters(), lr=0.1, **options)
    follow(student, optimizer)
    return student, optimizer


def step(student, optimizer) -> None:
    optimizer.zero_grad()
    student(torch.ones(1, 2)).sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_followed_optimizer_is_as_before(kind: type):
    """Also under a scheduler, which wraps `step` and warns where it cannot."""
    student, optimizer = followed(kind)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    twin = Updated(2, 1)
    twin.load_state_dict(student.state_dict())
    stock = kind(twin.parameters(), lr=0.1)
    stock_scheduler = torch.optim.lr_scheduler.LambdaLR(stock, lambda n: 0.5**n)
    for updates in range(1, 4):
        step(student, optimizer)
        scheduler.step()
        step(twin, stock)
        stock_scheduler.step()
        assert (student.updates, twin.updates) == (updates, 0)
    assert torch.equal(student.weight, twin.weight)
    assert isinstance(optimizer, kind) and repr(optimizer) == repr(stock)
    state = optimizer.state_dict()
    stock.load_state_dict(state)  # stock ESPnet resumes it
    again, resumed = followed(kind)
    resumed.load_state_dict(state)
    step(again, resumed)
    assert again.updates == 4 and student.updates == 3


def test_a_checkpoint_without_a_count_is_reported(caplog):
    student, optimizer = followed(torch.optim.SGD)
    old = torch.optim.SGD(Updated(2, 1).parameters(), lr=0.1).state_dict()
    with caplog.at_level(logging.WARNING):
        optimizer.load_state_dict(old)
    assert "has no count of updates" in caplog.text
    assert student.updates == 0
