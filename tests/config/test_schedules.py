"""Numbers that change with the updates: values, limits and refusals."""

import math

import pytest

from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.config.schedules import (
    Schedule,
    at,
    parse_scheduled,
    scheduled_values,
)

LINEAR = dict(schedule="linear", start=4, end=1, steps=10, begin=5)


def test_linear_by_update():
    schedule = parse_scheduled("temperature", LINEAR, above=0)
    expected = [4.0] * 6 + [4 - 0.3 * n for n in range(1, 10)] + [1.0] * 5
    assert [schedule.at(n) for n in range(20)] == pytest.approx(expected, rel=1e-12)
    assert schedule.at(5) == 4 and schedule.at(15) == 1 and schedule.at(10**9) == 1


def test_cosine_by_update():
    schedule = Schedule("cosine", 0.0, 2.0, steps=8)
    for n in range(9):
        assert schedule.at(n) == pytest.approx(1 - math.cos(math.pi * n / 8))
    assert (schedule.at(0), schedule.at(8), schedule.at(9)) == (0.0, 2.0, 2.0)
    assert schedule.at(4) == pytest.approx(1.0)
    assert schedule.at(1) < 2 / 8  # slow at first, unlike linear


def test_a_jump():
    schedule = Schedule("linear", 0.0, 0.7, steps=1, begin=3)
    assert [schedule.at(n) for n in range(6)] == [0, 0, 0, 0, 0.7, 0.7]


def test_constants_are_numbers():
    assert parse_scheduled("weight", 0.3) == 0.3
    assert parse_scheduled("weight", dict(schedule="constant", start=2)) == 2
    assert at(0.3, 100) == 0.3


BAD = {
    "weight: 'much' is not a number": "much",
    "weight.begins: no such field; known: .*'begin'": dict(LINEAR, begins=1),
    "weight: a schedule needs steps; give schedule .linear or cosine.*": dict(
        schedule="linear", start=1, end=0
    ),
    "weight: a schedule needs schedule": dict(start=1, end=0, steps=3),
    "weight.schedule: 'exp' is not one of .*'cosine'": dict(LINEAR, schedule="exp"),
    "weight.schedule: constant takes `start` and nothing else": dict(
        LINEAR, schedule="constant"
    ),
    "weight.start: 'a' is not a number": dict(LINEAR, start="a"),
    "weight.start: -1 must be at least 0": dict(LINEAR, start=-1),
    "weight.end: -2 must be at least 0": dict(LINEAR, end=-2),
    "weight.end: inf is not finite": dict(LINEAR, end=math.inf),
    "weight.steps: 0 must be at least 1": dict(LINEAR, steps=0),
    "weight.steps: 2.5 is not a whole number": dict(LINEAR, steps=2.5),
    "weight.begin: -1 must be at least 0": dict(LINEAR, begin=-1),
    "weight: True is not a number": dict(schedule="constant", start=True),
    "weight.schedule: constant takes `start`": dict(schedule="constant"),
}


@pytest.mark.parametrize("message", BAD)
def test_a_mistake_is_named(message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_scheduled("weight", BAD[message], minimum=0)


def test_a_mistake_in_kd_conf_is_named_with_its_place():
    losses = [dict(nodes="path", temperature=dict(LINEAR, end=0))]
    message = r"^kd_conf.losses\[0\]: temperature.end: 0 must be above 0"
    with pytest.raises(ValueError, match=message):
        parse_kd_conf(dict(losses=losses))
    with pytest.raises(ValueError, match="^kd_conf: hard_weight.steps: 0 must"):
        parse_kd_conf(dict(hard_weight=dict(LINEAR, steps=0)))


CONF = dict(
    losses=[
        dict(nodes="path", temperature=LINEAR, weight=0.5),
        dict(nodes="frames", weight=dict(schedule="cosine", start=0, end=1, steps=4)),
    ],
    hidden=[dict(student="a", teacher="b", weight=LINEAR)],
    hard_weight=dict(schedule="linear", start=1, end=0.5, steps=10),
)


def test_the_configuration_that_holds_now():
    conf = parse_kd_conf(CONF)
    now = conf.at(10)
    assert now.at(0) is now
    assert now.losses[0].temperature == pytest.approx(2.5)
    assert (now.losses[0].weight, now.losses[0].nodes) == (0.5, "path")
    assert (now.losses[1].weight, now.hard_weight) == (1.0, 0.5)
    assert now.hidden[0].weight == pytest.approx(2.5)
    assert now.hidden[0].student == "a"


def test_without_schedules_nothing_changes():
    conf = parse_kd_conf(dict(losses=[dict(nodes="path")], hidden=CONF["hidden"][:0]))
    assert conf.at(100) is conf
    assert KDConf().at(3) == KDConf()


def test_only_what_changes_is_reported():
    conf = parse_kd_conf(CONF)
    named = {"": conf, "path": conf.losses[0], "frames": conf.losses[1]}
    assert scheduled_values({**named, "hidden": conf.hidden[0]}, 5) == {
        "kd_hard_weight": pytest.approx(0.75),
        "kd_temperature_path": 4.0,
        "kd_weight_frames": 1.0,
        "kd_weight_hidden": 4.0,
    }
    plain = conf.at(0)
    assert scheduled_values({"": plain, "path": plain.losses[0]}, 0) == {}
