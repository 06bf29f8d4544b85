"""`kd_conf`: accepted values, and that every mistake is named."""

import pytest

from espnet_kd.config.hidden import HiddenConf
from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.config.losses import (
    Alternatives,
    BandConf,
    FramesConf,
    LatticeConf,
    PathConf,
    SequenceConf,
)
from espnet_kd.config.schedules import Schedule


def test_nothing_means_no_losses():
    assert parse_kd_conf({}) == KDConf()
    assert parse_kd_conf({"losses": None}).losses == ()


@pytest.mark.parametrize("name", ["true_lengths", "lean_joint"])
@pytest.mark.parametrize("value", [True, False, None])
def test_a_switch_may_be_left_open(name: str, value):
    assert getattr(parse_kd_conf({name: value}), name) is value
    assert getattr(parse_kd_conf({}), name) is None


def test_values_are_taken_over():
    conf = parse_kd_conf(
        dict(
            losses=[
                dict(nodes=["frames", "path"], classes="topk", k=4, tail="renormalize"),
                dict(nodes="lattice", classes="collapsed", weight=0.05, temperature=2),
                dict(nodes="path", shift=3, window=4, reduction="node"),
                dict(nodes="band", width=3, weighting="occupancy", classes="topk"),
                dict(nodes=["lattice", "band"], weighting="occupancy"),
                dict(nodes="path", classes="collapsed", paths="nbest", num_paths=3),
                dict(nodes="sequence", distance="l2"),
                dict(nodes="sequence", temperature=3),
            ],
            hidden=[
                dict(student="encoder.encoders.1", teacher="encoder.encoders.3"),
                dict(
                    student="a", teacher="b", loss="cosine", weight=0, teacher_index=1
                ),
            ],
            hard_weight=0.5,
            rate="pool",
            true_lengths=False,
            lean_joint=True,
            tolerance=1e-6,
        )
    )
    assert conf == KDConf(
        losses=(
            Alternatives(
                (
                    FramesConf(classes="topk", k=4, tail="renormalize"),
                    PathConf(classes="topk", k=4, tail="renormalize"),
                )
            ),
            LatticeConf(classes="collapsed", weight=0.05, temperature=2),
            PathConf(shift=3, window=4, reduction="node"),
            BandConf(classes="topk", width=3, weighting="occupancy"),
            Alternatives(
                (LatticeConf(weighting="occupancy"), BandConf(weighting="occupancy"))
            ),
            PathConf(classes="collapsed", paths="nbest", num_paths=3),
            SequenceConf(distance="l2"),
            SequenceConf(temperature=3),
        ),
        hidden=(
            HiddenConf("encoder.encoders.1", "encoder.encoders.3"),
            HiddenConf("a", "b", "cosine", 0, teacher_index=1),
        ),
        hard_weight=0.5,
        rate="pool",
        true_lengths=False,
        lean_joint=True,
        tolerance=1e-6,
    )


BAD = {
    "kd_conf: 'path'": "path",
    "kd_conf.temperature: no such field; known: .*hard_weight": dict(temperature=1),
    "kd_conf: hard_weight: -1 must be at least 0": dict(hard_weight=-1),
    "kd_conf: hard_weight: nan is not finite": dict(hard_weight=float("nan")),
    "kd_conf: hard_weight: True is not a number": dict(hard_weight=True),
    "kd_conf: rate: 'mean' is not one of .'stride', 'pool'": dict(rate="mean"),
    "kd_conf: true_lengths: 'yes' is not true or false": dict(true_lengths="yes"),
    "kd_conf.losses: must be a list": dict(losses=dict(nodes="path")),
    r"kd_conf.losses\[0\]: 'path' is not a mapping": dict(losses=["path"]),
    "kd_conf: lean_joint: 1 is not true or false": dict(lean_joint=1),
    "kd_conf: tolerance: -1 must be at least 0": dict(tolerance=-1),
    "kd_conf.hidden: must be a list, .*student: ": dict(hidden=dict(student="a")),
    r"kd_conf.hidden\[0\]: .*teacher": dict(hidden=[dict(student="a")]),
    r"kd_conf.hidden\[0\].layer: no such field; known: .*'teacher'": dict(
        hidden=[dict(student="a", teacher="b", layer=3)]
    ),
    r"kd_conf.hidden\[0\]: teacher: 3 is not the name": dict(
        hidden=[dict(student="a", teacher=3)]
    ),
    r"kd_conf.hidden\[0\]: loss: 'l1' is not one of .*'cosine'": dict(
        hidden=[dict(student="a", teacher="b", loss="l1")]
    ),
    r"kd_conf.hidden\[0\]: teacher_index: -1 must": dict(
        hidden=[dict(student="a", teacher="b", teacher_index=-1)]
    ),
    r"kd_conf.hidden\[0\]: weight: -1 must": dict(
        hidden=[dict(student="a", teacher="b", weight=-1)]
    ),
}
BAD_LOSSES = {
    r"temprature: no such field; known: .*temperature": dict(temprature=2.0),
    r"nodes: 'node' is not one of .*'frames'": dict(nodes="node"),
    r"nodes: 'node' is not one of .*'tokens'": dict(nodes=["path", "node"]),
    r"nodes: .* lists one kind twice": dict(nodes=["path", "path"]),
    r"nodes: .* is neither a name nor a list": dict(nodes=[]),
    r"nodes: 3 is neither a name nor a list": dict(nodes=3),
    r"classes: 'top-k' is not one of .*'topk'": dict(classes="top-k"),
    r"classes: collapsed needs nodes: lattice, band or path, not": dict(
        nodes=["path", "frames"], classes="collapsed"
    ),
    r"classes: nodes: sequence has no such field, only frames, .* path; leave": dict(
        nodes="sequence", classes="topk"
    ),
    r"weight: -0.1 must be at least 0": dict(weight=-0.1),
    r"weight: '1' is not a number": dict(weight="1"),
    r"weight: inf is not finite": dict(weight=float("inf")),
    r"temperature: 0 must be above 0": dict(temperature=0),
    r"reduction: 'none' is not one of .*'node'": dict(reduction="none"),
    r"k: 0 must be at least 1": dict(k=0),
    r"k: 2.5 is not a whole number": dict(k=2.5),
    r"tail: 'rest' is not one of .*'bucket'": dict(tail="rest"),
    r"shift: -1 must be at least 0": dict(shift=-1),
    r"shift: nodes: frames has no such field, only lattice, band and path; leave": dict(
        nodes="frames", shift=1
    ),
    r"window: 0 must be at least 1": dict(window=0),
    r"window: 3 shifts up to 1 would .* at most shift . 1": dict(shift=1, window=3),
    r"window: nodes: band has no such field, only path; .* Known: .*'width'": dict(
        nodes="band", window=2
    ),
    r"width: nodes: path has no such field, only band; .* Known: .*'window'": dict(
        width=3
    ),
    r"width: 1 must be at least 2": dict(nodes="band", width=1),
    r"weighting: nodes: path has no such field, only lattice and band": dict(
        weighting="occupancy"
    ),
    r"weighting: 'path' is not one of .*'occupancy'": dict(
        nodes="lattice", weighting="path"
    ),
    r"paths: 'all' is not one of .*'nbest'": dict(paths="all"),
    r"paths: nodes: band has no such field, only path": dict(
        nodes="band", paths="sample"
    ),
    r"num_paths: 2 needs paths: nbest or sample": dict(num_paths=2),
    r"num_paths: 0 must be at least 1": dict(paths="nbest", num_paths=0),
    r"distance: nodes: path has no such field, only sequence": dict(distance="l1"),
    r"divergence: nodes: sequence has no such field, only frames, ": dict(
        nodes="sequence", divergence="jsd"
    ),
    r"divergence: 'js' is not one of .*'reverse_kl', 'jsd'": dict(divergence="js"),
    r"divergence: reverse_kl is infinite with tail: renormalize.*; use tail: bucket": (
        dict(divergence="reverse_kl", classes="topk", tail="renormalize")
    ),
    r"k: nodes: sequence has no such field, only frames, .* leave k out.*'distance'": (
        dict(nodes=["path", "sequence"], k=4)
    ),
    r"distance: 'js' is not one of .*'l2'": dict(nodes="sequence", distance="js"),
    r"temperature: not used by distance: l1; leave it out": dict(
        nodes="sequence", distance="l1", temperature=2
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_mistake_is_named(message: str):
    with pytest.raises(ValueError, match=message):
        parse_kd_conf(BAD[message])


@pytest.mark.parametrize("message", BAD_LOSSES)
def test_a_mistake_in_a_loss_is_named_with_its_place(message: str):
    losses = [dict(nodes="frames"), {"nodes": "path", **BAD_LOSSES[message]}]
    with pytest.raises(ValueError, match=r"kd_conf.losses\[1\]\W+" + message):
        parse_kd_conf(dict(losses=losses))


def test_nodes_are_required():
    with pytest.raises(ValueError, match=r"kd_conf.losses\[0\]: .*nodes"):
        parse_kd_conf(dict(losses=[dict(classes="full")]))


def test_a_teacher_is_needed_for_losses_and_for_hidden_layers():
    assert not parse_kd_conf({}).needs_teacher
    assert parse_kd_conf(dict(losses=[dict(nodes="path")])).needs_teacher
    assert parse_kd_conf(dict(hidden=[dict(student="a", teacher="b")])).needs_teacher


def test_weights_and_temperatures_may_be_schedules():
    schedule = dict(schedule="linear", start=1, end=0.5, steps=10)
    losses = [dict(nodes="path", weight=schedule, temperature=schedule)]
    hidden = [dict(student="a", teacher="b", weight=schedule)]
    conf = parse_kd_conf(dict(losses=losses, hidden=hidden, hard_weight=schedule))
    expected = Schedule("linear", 1, 0.5, 10)
    (loss,), (pair,) = conf.losses, conf.hidden
    assert loss.weight == loss.temperature == pair.weight == expected
    assert conf.hard_weight == expected
