"""`kd_conf`: what is compared between student and teacher, and how strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Mapping

NODES = ("frames", "tokens", "lattice", "path")
CLASSES = ("full", "topk", "collapsed")


@dataclass(frozen=True)
class LossConf:
    """One cell of the grid nodes x classes.

    Attributes:
        nodes: where student and teacher are compared: `frames` (CTC), `tokens`
            (attention decoder), `lattice` (all T x (U+1) transducer nodes) or `path`
            (the teacher's best path). A list means: each of these that both models
            have.
        classes: `full` vocabulary, `topk` (the K best of the teacher, blank kept on
            frames, lattice and path) or `collapsed` ({label, blank, rest}; lattice).
        weight: factor of this loss in the training loss.
        temperature: divides the logits of both sides; the loss is multiplied by its
            square.
        reduction: `batch` (sum over nodes / utterances) or `node` (mean over nodes).
        k: classes kept by `topk`.
        tail: what `topk` does with the other classes: `bucket` (one class for all of
            them) or `renormalize` (the kept ones are made to sum to one).
        shift: encoder frames by which the student may be later than the teacher
            (streaming students; path).
    """

    nodes: str | tuple[str, ...]
    classes: str = "full"
    weight: float = 1.0
    temperature: float = 1.0
    reduction: str = "batch"
    k: int = 8
    tail: str = "bucket"
    shift: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.nodes, list):
            object.__setattr__(self, "nodes", tuple(self.nodes))
        names = (self.nodes,) if isinstance(self.nodes, str) else self.nodes
        if not isinstance(names, tuple) or not names:
            raise ValueError(f"nodes: {self.nodes!r} is neither a name nor a list")
        for name in names:
            _one_of("nodes", name, NODES)
        if len(set(names)) < len(names):
            raise ValueError(f"nodes: {self.nodes!r} names one kind twice")
        _one_of("classes", self.classes, CLASSES)
        _one_of("reduction", self.reduction, ("batch", "node"))
        _one_of("tail", self.tail, ("bucket", "renormalize"))
        _number("weight", self.weight, minimum=0)
        _number("temperature", self.temperature, above=0)
        _integer("k", self.k, minimum=1)
        _integer("shift", self.shift, minimum=0)
        if self.classes == "collapsed" and names != ("lattice",):
            raise ValueError(
                f"classes: collapsed needs nodes: lattice, not {self.nodes!r}; "
                "use classes: full or topk there"
            )
        if self.shift and names != ("path",):
            raise ValueError(
                f"shift: only nodes: path can be shifted, not {self.nodes!r}"
            )


@dataclass(frozen=True)
class KDConf:
    """The whole of `kd_conf`.

    Attributes:
        losses: the KD losses; none switches KD off.
        hard_weight: factor of the student's own loss (1 - lambda in essence KD).
        rate: how the faster side is brought to the frame rate of the slower one where
            one is an integer multiple of the other: `stride` (every n-th frame) or
            `pool` (mean of n frames).
        true_lengths: encode padded batches with true lengths
            (espnet_kd.student.lengths), with or without KD; None: with KD (losses, or
            weights in the training data), else as stock ESPnet does.
    """

    losses: tuple[LossConf, ...] = field(default_factory=tuple)
    hard_weight: float = 1.0
    rate: str = "stride"
    true_lengths: bool | None = None

    def __post_init__(self) -> None:
        _number("hard_weight", self.hard_weight, minimum=0)
        _one_of("rate", self.rate, ("stride", "pool"))
        if not isinstance(self.true_lengths, (bool, type(None))):
            raise ValueError(
                f"true_lengths: {self.true_lengths!r} is not true or false"
            )


def parse_kd_conf(conf: Mapping[str, Any]) -> KDConf:
    """Validate the mapping under `kd_conf` of a training configuration.

    Raises:
        ValueError: an unknown key or a bad value; the message names the field and
            what it may be.
    """
    if not isinstance(conf, Mapping):
        raise ValueError(f"kd_conf: {conf!r} is not a mapping of names to values")
    conf = dict(conf)
    losses = conf.pop("losses", None) or []
    if not isinstance(losses, (list, tuple)):
        raise ValueError(
            "kd_conf.losses: must be a list, one entry (`- nodes: ...`) for each loss"
        )
    parsed = tuple(
        _build(LossConf, entry, f"kd_conf.losses[{index}]")
        for index, entry in enumerate(losses)
    )
    return _build(KDConf, {**conf, "losses": parsed}, "kd_conf")


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: {values!r} is not a mapping of names to values")
    known = [item.name for item in fields(cls)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: no such field; known: {known}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is none of {list(allowed)}")


def _number(
    name: str, value: Any, minimum: float | None = None, above: float | None = None
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: {value!r} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: {value} is not finite")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: {value} must be at least {minimum}")
    if above is not None and value <= above:
        raise ValueError(f"{name}: {value} must be above {above}")


def _integer(name: str, value: Any, minimum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}: {value!r} is not a whole number")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: {value} must be at least {minimum}")
