"""`kd_conf`: what is accepted, and that every mistake is named."""

import pytest

from espnet_kd.student.config import KDConf, LossConf, parse_kd_conf


def test_nothing_means_no_losses():
    assert parse_kd_conf({}) == KDConf()
    assert parse_kd_conf({"losses": None}).losses == ()


@pytest.mark.parametrize("value", [True, False, None])
def test_true_lengths_may_be_left_open(value):
    assert parse_kd_conf(dict(true_lengths=value)).true_lengths is value
    assert parse_kd_conf({}).true_lengths is None


def test_values_are_taken_over():
    conf = parse_kd_conf(
        dict(
            losses=[
                dict(nodes=["frames", "path"], classes="topk", k=4, tail="renormalize"),
                dict(nodes="lattice", classes="collapsed", weight=0.05, temperature=2),
                dict(nodes="path", shift=3, reduction="node"),
            ],
            hard_weight=0.5,
            rate="pool",
            true_lengths=False,
        )
    )
    assert conf == KDConf(
        losses=(
            LossConf(("frames", "path"), "topk", k=4, tail="renormalize"),
            LossConf("lattice", "collapsed", weight=0.05, temperature=2),
            LossConf("path", shift=3, reduction="node"),
        ),
        hard_weight=0.5,
        rate="pool",
        true_lengths=False,
    )


BAD = {
    "kd_conf: 'path'": "path",
    "kd_conf.temperature: no such field; known: .*hard_weight": dict(temperature=1),
    "kd_conf: hard_weight: -1 must be at least 0": dict(hard_weight=-1),
    "kd_conf: hard_weight: nan is not finite": dict(hard_weight=float("nan")),
    "kd_conf: hard_weight: True is not a number": dict(hard_weight=True),
    "kd_conf: rate: 'mean' is none of .'stride', 'pool'": dict(rate="mean"),
    "kd_conf: true_lengths: 'yes' is not true or false": dict(true_lengths="yes"),
    "kd_conf.losses: must be a list": dict(losses=dict(nodes="path")),
    r"kd_conf.losses\[0\]: 'path' is not a mapping": dict(losses=["path"]),
}
BAD_LOSSES = {
    r"temprature: no such field; known: .*temperature": dict(temprature=2.0),
    r"nodes: 'node' is none of .*'frames'": dict(nodes="node"),
    r"nodes: 'node' is none of .*'tokens'": dict(nodes=["path", "node"]),
    r"nodes: .* names one kind twice": dict(nodes=["path", "path"]),
    r"nodes: .* is neither a name nor a list": dict(nodes=[]),
    r"nodes: 3 is neither a name nor a list": dict(nodes=3),
    r"classes: 'top-k' is none of .*'topk'": dict(classes="top-k"),
    r"classes: collapsed needs nodes: lattice": dict(classes="collapsed"),
    r"weight: -0.1 must be at least 0": dict(weight=-0.1),
    r"weight: '1' is not a number": dict(weight="1"),
    r"weight: inf is not finite": dict(weight=float("inf")),
    r"temperature: 0 must be above 0": dict(temperature=0),
    r"reduction: 'none' is none of .*'node'": dict(reduction="none"),
    r"k: 0 must be at least 1": dict(k=0),
    r"k: 2.5 is not a whole number": dict(k=2.5),
    r"tail: 'rest' is none of .*'bucket'": dict(tail="rest"),
    r"shift: -1 must be at least 0": dict(shift=-1),
    r"shift: only nodes: path can be shifted": dict(nodes="frames", shift=1),
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


def test_nodes_must_be_said():
    with pytest.raises(ValueError, match=r"kd_conf.losses\[0\]: .*nodes"):
        parse_kd_conf(dict(losses=[dict(classes="full")]))
