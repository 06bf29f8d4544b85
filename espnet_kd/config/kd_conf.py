"""`kd_conf`: what is compared between student and teacher, and how strongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from espnet_kd.config.fields import (
    Choice,
    Form,
    Number,
    Section,
    Switch,
    build,
    check_mapping,
    option,
)
from espnet_kd.config.hidden import HiddenConf
from espnet_kd.config.init import InitConf
from espnet_kd.config.losses import Entry, LossConf, losses_of, parse_loss
from espnet_kd.config.pruning import PruningConf
from espnet_kd.config.schedules import NumberOrSchedule, Scheduled, section_at


def _nested(words: str) -> Form:
    """Sections of `kd_conf`, which `parse_kd_conf` builds."""
    return Form(words, lambda name, value: value)


@dataclass(frozen=True)
class KDConf(Section):
    """The whole of `kd_conf`.

    `losses` may hold `Alternatives` until `distill.compatibility.with_known_nodes`
    has seen the models.
    """

    losses: tuple[Entry, ...] = option(
        _nested("list of losses"),
        "The KD losses; KD is off if both this and `hidden` are empty.",
        (),
    )
    hidden: tuple[HiddenConf, ...] = option(
        _nested("list of pairs of layers"),
        "Layers whose outputs are compared.",
        (),
        experimental=True,
    )
    hard_weight: Scheduled = option(
        NumberOrSchedule(minimum=0),
        "Factor of the student's own loss (1 - lambda in essence KD).",
        1.0,
        experimental=True,
    )
    rate: str = option(
        Choice(("stride", "pool")),
        """How the faster side is brought to the frame rate of the slower one, of which
        it must be an integer multiple: `stride` (every n-th frame) or `pool` (mean of n
        frames).""",
        "stride",
        experimental=True,
    )
    true_lengths: bool | None = option(
        Switch(),
        """Encode padded batches with true lengths; null: only with KD (`losses`,
        `hidden`, or weights in the training data), otherwise as in stock ESPnet.""",
        None,
    )
    lean_joint: bool | None = option(
        Switch(),
        """Compute a transducer's joint network in chunks of nodes, without a tensor
        (B, T, U+1, V); null: only with KD, otherwise as in stock ESPnet.""",
        None,
    )
    tolerance: float = option(
        Number(minimum=0),
        """The backward pass skips lattice nodes whose largest gradient is below this
        fraction of the batch's largest; 0 is exact.""",
        0.0,
        experimental=True,
    )
    pruning: PruningConf | None = option(
        _nested("mapping"),
        "Makes the student sparse during training, with or without KD.",
        None,
    )
    init_from_teacher: InitConf | None = option(
        _nested("mapping"),
        """Initialises the student with layers of a teacher of the same width, with or
        without KD.""",
        None,
    )

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is compared with a teacher in training."""
        return bool(self.losses or self.hidden)

    @property
    def possible_losses(self) -> Iterator[LossConf]:
        """Every loss, including each one that a list of nodes may become."""
        for entry in self.losses:
            yield from losses_of(entry)

    def at(self, updates: int) -> KDConf:
        """The same with every weight and temperature after `updates` updates."""
        losses = tuple(loss.at(updates) for loss in self.losses)
        hidden = tuple(pair.at(updates) for pair in self.hidden)
        now = section_at(self, updates)
        if (losses, hidden) == (self.losses, self.hidden):
            return now
        return dataclasses.replace(now, losses=losses, hidden=hidden)


def parse_kd_conf(conf: Mapping[str, Any]) -> KDConf:
    """Validate the mapping under `kd_conf` of a training configuration.

    Raises:
        ValueError: an unknown key or a bad value; the message names the field and
            the values it may take.
    """
    check_mapping(conf, "kd_conf")
    conf = dict(conf)
    conf["losses"] = _parse_list(conf, "losses", parse_loss, "`- nodes: ...`")
    hint = "`- {student: ..., teacher: ...}`"
    conf["hidden"] = _parse_list(
        conf, "hidden", lambda pair, where: build(HiddenConf, pair, where), hint
    )
    for name, cls in (("pruning", PruningConf), ("init_from_teacher", InitConf)):
        if conf.get(name) is not None:
            conf[name] = build(cls, conf[name], f"kd_conf.{name}")
    return build(KDConf, conf, "kd_conf")


def _parse_list(
    conf: Mapping[str, Any], name: str, parse: Callable[[Any, str], Any], hint: str
) -> tuple:
    entries = conf.get(name) or []
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"kd_conf.{name}: must be a list, one entry ({hint}) for each")
    return tuple(
        parse(entry, f"kd_conf.{name}[{index}]") for index, entry in enumerate(entries)
    )
