"""The names that `kd_conf` allows are those that the losses have."""

from dataclasses import fields

import pytest

from espnet_kd.config.losses import LOSSES
from espnet_kd.config.options import option_of
from espnet_kd.losses.classes import CLASSES
from espnet_kd.losses.divergences import DIVERGENCES
from espnet_kd.losses.topk import TAILS


@pytest.mark.parametrize(
    "field, table",
    [("classes", CLASSES), ("divergence", DIVERGENCES), ("tail", TAILS)],
)
def test_names(field, table):
    allowed = set()
    for kind in LOSSES.values():
        for item in fields(kind):
            if item.name == field:
                allowed |= set(option_of(item).kind.names)
    assert allowed == set(table)
