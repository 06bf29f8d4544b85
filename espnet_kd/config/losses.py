"""`kd_conf.losses`: one class for each kind of nodes, with the fields it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Union

from espnet_kd.config.checks import one_of
from espnet_kd.config.fields import (
    Choice,
    Integer,
    Section,
    build,
    check_mapping,
    listed,
    option,
    option_of,
)
from espnet_kd.config.schedules import NumberOrSchedule, Scheduled, section_at

DIVERGENCES = ("kl", "reverse_kl", "jsd")
WEIGHTING = option(
    Choice(("none", "occupancy")),
    """Weights of the nodes: `none` (all count equally) or `occupancy` (the teacher's
    posterior of passing the node, so that nodes that no likely alignment visits count
    less).""",
    "none",
)


@dataclass(frozen=True)
class LossConf(Section):
    """One loss of `kd_conf`, at one kind of nodes; a subclass for each kind.

    Attributes:
        nodes: name of the kind of nodes in `kd_conf`.
        compared: what is compared, for help texts.
        needs: what student and teachers need, for help texts.
        signal: nodes that the models must have, if named differently.
    """

    nodes: ClassVar[str]
    signal: ClassVar[str] = ""
    compared: ClassVar[str]
    needs: ClassVar[str]

    weight: Scheduled = option(
        NumberOrSchedule(minimum=0), "Factor of this loss in the training loss.", 1.0
    )
    temperature: Scheduled = option(
        NumberOrSchedule(above=0),
        "Divides the logits of both sides; the loss is multiplied by its square.",
        1.0,
    )
    reduction: str = option(
        Choice(("batch", "node")),
        "`batch` (sum over nodes / utterances) or `node` (mean over nodes).",
        "batch",
        experimental=("node",),
    )

    @property
    def variant(self) -> str:
        """Distinguishes losses at the same nodes in the statistics."""
        raise NotImplementedError

    def at(self, updates: int) -> LossConf:
        """The same with the weight and temperature after `updates` updates."""
        return section_at(self, updates)


@dataclass(frozen=True)
class NodeLossConf(LossConf):
    """A loss that compares the posteriors of student and teachers node by node."""

    classes: str = option(
        Choice(("full", "topk")),
        """Resolution at which posteriors are compared: `full` (the whole vocabulary) or
        `topk` (the teacher's `k` best classes; on frames always including blank).""",
        "full",
    )
    k: int = option(Integer(1), "Number of classes that `topk` keeps.", 8)
    tail: str = option(
        Choice(("bucket", "renormalize")),
        """What `topk` does with the other classes: `bucket` (one class for all of them)
        or `renormalize` (the kept ones are renormalised to sum to one).""",
        "bucket",
    )
    divergence: str = option(
        Choice(DIVERGENCES),
        """Divergence between the posteriors p of the student and q of the teacher: `kl`
        (KL(q, p), mean-seeking), `reverse_kl` (KL(p, q), mode-seeking) or `jsd`
        (Jensen-Shannon: the mean of KL(q, m) and KL(p, m) with m = (p + q) / 2).""",
        "kl",
        experimental=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        leaves_classes_out = (self.classes, self.tail) == ("topk", "renormalize")
        if self.divergence == "reverse_kl" and leaves_classes_out:
            raise ValueError(
                "divergence: reverse_kl is infinite with tail: renormalize, which "
                "leaves the other classes without teacher mass; use tail: bucket, or "
                "another divergence"
            )

    @property
    def variant(self) -> str:
        if self.divergence == "kl":
            return self.classes
        return f"{self.classes}_{self.divergence}"


@dataclass(frozen=True)
class FramesConf(NodeLossConf):
    """CTC posteriors, frame by frame."""

    nodes = "frames"
    compared = "CTC posteriors of each encoder frame"
    needs = "CTC branches"


@dataclass(frozen=True)
class TokensConf(NodeLossConf):
    """Posteriors of attention decoders, token by token."""

    nodes = "tokens"
    compared = "posteriors of the attention decoder after each reference token"
    needs = "attention decoders"


@dataclass(frozen=True)
class TransducerLossConf(NodeLossConf):
    """A loss on nodes of the transducer lattice of the labels."""

    needs = "transducers"
    window: ClassVar[int] = 1  # only a path compares each node at several shifts

    classes: str = option(
        Choice(("full", "topk", "collapsed")),
        """Resolution at which posteriors are compared: `full` (the whole vocabulary),
        `topk` (the teacher's `k` best classes, always including blank) or `collapsed`
        ({label, blank, rest}).""",
        "full",
    )
    shift: int = option(
        Integer(0),
        """Encoder frames by which the student is later than the teacher (streaming
        students).""",
        0,
    )


@dataclass(frozen=True)
class LatticeConf(TransducerLossConf):
    """All nodes of the transducer lattice."""

    nodes = "lattice"
    compared = "all T x (U+1) nodes of the transducer lattice of the labels"

    weighting: str = WEIGHTING


@dataclass(frozen=True)
class BandConf(TransducerLossConf):
    """The part of the transducer lattice that the teacher uses most."""

    nodes = "band"
    compared = (
        "the `width` rows of each frame that the teacher's alignments use most; with "
        "`use_k2_pruned_loss`, those of the student's own pruning"
    )
    is_experimental = True

    weighting: str = WEIGHTING
    width: int = option(Integer(2), "Rows of the band at each frame.", 5)


@dataclass(frozen=True)
class PathConf(TransducerLossConf):
    """Alignments by the teacher."""

    nodes = "path"
    compared = (
        "the nodes of the teacher's best alignment of the labels, or of several "
        "alignments (`paths`)"
    )

    window: int = option(
        Integer(1),
        """Number of shifts tried at each node, from shift - window + 1 to shift; the
        smallest loss counts. 1 means `shift` only.""",
        1,
        experimental=True,
    )
    paths: str = option(
        Choice(("best", "nbest", "sample")),
        """The teacher's alignments that are compared: `best`, the `num_paths` best
        (`nbest`), or `num_paths` drawn from its posterior (`sample`).""",
        "best",
        experimental=True,
    )
    num_paths: int = option(
        Integer(1),
        "Number of alignments per utterance, for `nbest` and `sample`.",
        1,
        experimental=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window > self.shift + 1:
            raise ValueError(
                f"window: {self.window} shifts up to {self.shift} would let the "
                f"student be earlier than the teacher; set window to at most shift + 1"
            )
        if self.num_paths > 1 and self.paths == "best":
            raise ValueError(
                f"num_paths: {self.num_paths} needs paths: nbest or sample; paths: "
                "best is a single path"
            )


@dataclass(frozen=True)
class SequenceConf(LossConf):
    """Probabilities of whole label sequences (full-sum KD)."""

    nodes = "sequence"
    compared = (
        "log P of the whole label sequence; the entries of a batch with the same audio "
        "form a list of hypotheses"
    )
    needs = "any of the branches above, one GPU"

    distance: str = option(
        Choice((*DIVERGENCES, "l1", "l2")),
        """Distance between student and teacher: a divergence (of the posteriors,
        renormalised over the list; zero for a single hypothesis), or `l1` or `l2` (of
        the log-probabilities themselves, without a temperature).""",
        "kl",
        experimental=(*DIVERGENCES[1:], "l1", "l2"),
    )

    @property
    def is_divergence(self) -> bool:
        """Whether posteriors over the list are compared, not log-probabilities."""
        return self.distance in DIVERGENCES

    @property
    def variant(self) -> str:
        return self.distance

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_divergence and self.temperature != 1:
            raise ValueError(
                f"temperature: not used by distance: {self.distance}; leave it out"
            )


LOSSES: dict[str, type[LossConf]] = {
    cls.nodes: cls
    for cls in (FramesConf, TokensConf, LatticeConf, BandConf, PathConf, SequenceConf)
}
NODES = tuple(LOSSES)
# Nodes of a transducer lattice, where {label, blank, rest} are the classes.
LATTICE_NODES = tuple(
    nodes for nodes, cls in LOSSES.items() if issubclass(cls, TransducerLossConf)
)


@dataclass(frozen=True)
class Alternatives:
    """A list of nodes: a loss at each kind of these nodes that all models have
    (chosen by `espnet_kd.distill.compatibility.with_known_nodes`)."""

    losses: tuple[LossConf, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(loss.nodes for loss in self.losses)

    def at(self, updates: int) -> Alternatives:
        """The same with the weights and temperatures after `updates` updates."""
        return Alternatives(tuple(loss.at(updates) for loss in self.losses))


Entry = Union[LossConf, Alternatives]


def losses_of(entry: Entry) -> tuple[LossConf, ...]:
    """The losses that an entry of `kd_conf.losses` may become."""
    return entry.losses if isinstance(entry, Alternatives) else (entry,)


def parse_loss(values: Any, where: str) -> Entry:
    """One entry of `kd_conf.losses`.

    Args:
        where: prefix of messages, for example `kd_conf.losses[0]`.

    Raises:
        ValueError: unknown nodes or field, or a value that is not allowed.
    """
    check_mapping(values, where)
    if "nodes" not in values:
        raise ValueError(f"{where}: nodes is missing; give {listed(NODES)}, or a list")
    nodes = values["nodes"]
    kinds = _kinds(nodes, where)
    given = {name: value for name, value in values.items() if name != "nodes"}
    for kind in kinds:
        _check_fit(kind, given, where)
    losses = tuple(build(kind, given, where) for kind in kinds)
    return losses[0] if isinstance(nodes, str) else Alternatives(losses)


def _kinds(nodes: Any, where: str) -> list[type[LossConf]]:
    names = [nodes] if isinstance(nodes, str) else nodes
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f"{where}: nodes: {nodes!r} is neither a name nor a list")
    for name in names:
        one_of(f"{where}: nodes", name, NODES)
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: nodes: {nodes!r} lists one kind twice")
    return [LOSSES[name] for name in names]


def _check_fit(kind: type[LossConf], given: Mapping[str, Any], where: str) -> None:
    """Refuse fields and choices that these nodes do not have."""
    own = fields_of(kind)
    for name, value in given.items():
        others = [each for each in LOSSES.values() if name in fields_of(each)]
        if name not in own:
            known = ["nodes", *own]
            if not others:
                raise ValueError(
                    f"{where}.{name}: no such field; known: {known} (nodes: "
                    f"{kind.nodes})"
                )
            raise ValueError(
                f"{where}.{name}: nodes: {kind.nodes} has no such field, only "
                f"{listed([each.nodes for each in others], 'and')}; leave {name} out, "
                f"or make it a loss of its own. Known: {known}"
            )
        allowing = [each.nodes for each in others if _allows(each, name, value)]
        if allowing and not _allows(kind, name, value):
            raise ValueError(
                f"{where}: {name}: {value} needs nodes: {listed(allowing)}, not "
                f"{kind.nodes!r}; use {name}: {option_of(own[name]).kind} there"
            )


def fields_of(kind: type[LossConf]) -> dict[str, Field]:
    """The fields of a kind of nodes, by name."""
    return {item.name: item for item in fields(kind)}


def _allows(kind: type[LossConf], name: str, value: Any) -> bool:
    """Whether `value` is one of the choices of a field."""
    choice = option_of(fields_of(kind)[name]).kind
    return isinstance(choice, Choice) and value in choice.names
