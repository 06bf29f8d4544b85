"""The names of `kd_conf`, which does not import torch, are those of the losses."""

import dataclasses

from espnet_kd.config.fields import option_of
from espnet_kd.config.losses import (
    LATTICE_NODES,
    LOSSES,
    NodeLossConf,
    TransducerLossConf,
    fields_of,
)
from espnet_kd.distill import (  # noqa: F401
    band,
    frames,
    lattice,
    node_kinds,
    path,
    sequence,
    tokens,
)
from espnet_kd.distill.compatibility import SCORED
from espnet_kd.distill.sequence import SCORERS
from espnet_kd.losses.classes import CLASSES, TAILS
from espnet_kd.losses.divergences import DIVERGENCES


def names_of(kind: type, field: str) -> tuple[str, ...]:
    return option_of(fields_of(kind)[field]).kind.names


def test_every_kind_of_nodes_has_its_loss():
    assert set(node_kinds.TERMS) == set(LATTICE_NODES)
    assert {*node_kinds.LOSS_FUNCTIONS, *node_kinds.TERMS} == set(LOSSES)


def test_sequences_are_scored_at_all_nodes_that_may_be_known():
    assert set(SCORERS) == set(SCORED)


def test_divergences():
    assert names_of(NodeLossConf, "divergence") == tuple(DIVERGENCES)


def test_classes_and_their_options():
    assert set(names_of(TransducerLossConf, "classes")) == set(CLASSES)
    assert set(names_of(NodeLossConf, "tail")) == set(TAILS)
    options = {x.name for made in CLASSES.values() for x in dataclasses.fields(made)}
    assert options <= set(fields_of(NodeLossConf))
