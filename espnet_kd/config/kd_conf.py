"""`kd_conf`: what is compared between student and teacher, and how strongly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any, Mapping, Sequence, Union

from espnet_kd.config.checks import block_sides, integer, number, one_of
from espnet_kd.config.schedules import Schedule, Scheduled, at, parse_scheduled

NODES = ("frames", "tokens", "lattice", "band", "path", "sequence")
CLASSES = ("full", "topk", "collapsed")
# Fields that mean something only at some nodes, and these nodes.
ONLY_AT = {
    "shift": ("lattice", "band", "path"),
    "window": ("path",),
    "paths": ("path",),
    "num_paths": ("path",),
    "width": ("band",),
    "weighting": ("lattice", "band"),
    "distance": ("sequence",),
}
LISTED = ("encoder", "decoder")  # parts whose layers may be listed
Layers = Union[str, Sequence[int]]  # "even" or numbers of the teacher's layers
# Nodes of a transducer lattice, where {label, blank, rest} are the classes.
LATTICE_NODES = ("lattice", "band", "path")


@dataclass(frozen=True)
class LossConf:
    """One cell of the grid nodes x classes.

    `weight` and `temperature` are numbers or schedules by update, in YAML say
    `{schedule: linear, start: 4, end: 1, steps: 10000, begin: 2000}`
    (`espnet_kd.config.schedules`).

    Attributes:
        nodes: where student and teacher are compared: `frames` (CTC), `tokens`
            (attention decoder), `lattice` (all T x (U+1) transducer nodes), `band`
            (the `width` rows of each frame that the teacher's alignments use most),
            `path` (the teacher's best path, see `paths`) or `sequence` (log P of the
            whole label sequence; the entries of a batch with the same audio are a list
            of hypotheses). A list means: each of these that both models have.
        classes: `full` vocabulary, `topk` (the K best of the teacher, blank kept on
            frames, lattice, band and path) or `collapsed` ({label, blank, rest};
            lattice, band and path).
        weight: factor of this loss in the training loss.
        temperature: divides the logits of both sides; the loss is multiplied by its
            square.
        reduction: `batch` (sum over nodes / utterances) or `node` (mean over nodes).
        k: classes kept by `topk`.
        tail: what `topk` does with the other classes: `bucket` (one class for all of
            them) or `renormalize` (the kept ones are made to sum to one).
        shift: encoder frames by which the student is later than the teacher (streaming
            students; lattice, band and path).
        window: shifts that are tried at each node of a path, from shift - window + 1 to
            shift; the smallest loss counts. 1 is `shift` alone.
        width: rows of a band at each frame.
        weighting: of the nodes of a lattice or band: `none` (all count alike) or
            `occupancy` (by the teacher's posterior of passing the node, so that nodes
            that no likely alignment visits count less).
        paths: alignments by the teacher that are compared: `best`, the `num_paths`
            best (`nbest`), or `num_paths` drawn from its posterior (`sample`).
        num_paths: alignments of each utterance, for `nbest` and `sample`.
        distance: of sequences: `kl` (of the posteriors, renormalised over the list,
            in which a single hypothesis says nothing), or `l1` or `l2` (between the
            log-probabilities themselves).
    """

    nodes: str | tuple[str, ...]
    classes: str = "full"
    weight: Scheduled = 1.0
    temperature: Scheduled = 1.0
    reduction: str = "batch"
    k: int = 8
    tail: str = "bucket"
    shift: int = 0
    window: int = 1
    width: int = 5
    weighting: str = "none"
    paths: str = "best"
    num_paths: int = 1
    distance: str = "kl"

    def __post_init__(self) -> None:
        if isinstance(self.nodes, list):
            object.__setattr__(self, "nodes", tuple(self.nodes))
        names = (self.nodes,) if isinstance(self.nodes, str) else self.nodes
        if not isinstance(names, tuple) or not names:
            raise ValueError(f"nodes: {self.nodes!r} is neither a name nor a list")
        for name in names:
            one_of("nodes", name, NODES)
        if len(set(names)) < len(names):
            raise ValueError(f"nodes: {self.nodes!r} names one kind twice")
        one_of("classes", self.classes, CLASSES)
        one_of("reduction", self.reduction, ("batch", "node"))
        one_of("tail", self.tail, ("bucket", "renormalize"))
        one_of("weighting", self.weighting, ("none", "occupancy"))
        one_of("paths", self.paths, ("best", "nbest", "sample"))
        one_of("distance", self.distance, ("kl", "l1", "l2"))
        _schedulable(self, "weight", minimum=0)
        _schedulable(self, "temperature", above=0)
        integer("shift", self.shift, minimum=0)
        integer("width", self.width, minimum=2)
        for name in ("k", "window", "num_paths"):
            integer(name, getattr(self, name), minimum=1)
        self._check_fit(names)

    def _check_fit(self, names: tuple[str, ...]) -> None:
        """Refuse fields that mean nothing at the nodes or beside each other."""
        if self.classes == "collapsed" and not set(names) <= set(LATTICE_NODES):
            raise ValueError(
                f"classes: collapsed needs nodes: {_or(LATTICE_NODES)}, not "
                f"{self.nodes!r}; use classes: full or topk there"
            )
        if self.classes != "full" and "sequence" in names:
            raise ValueError(
                f"classes: nodes: sequence compares whole label sequences, for which "
                f"there is no {self.classes!r}; leave classes out"
            )
        for item in fields(self):
            where = ONLY_AT.get(item.name, NODES)
            value = getattr(self, item.name)
            if value != item.default and not set(names) <= set(where):
                raise ValueError(
                    f"{item.name}: {value!r} is only for nodes: {_or(where)}, not "
                    f"{self.nodes!r}; leave {item.name} out, or make it a loss of "
                    "its own"
                )
        if self.window > self.shift + 1:
            raise ValueError(
                f"window: {self.window} shifts up to {self.shift} would let the "
                f"student be earlier than the teacher; set window to at most shift + 1"
            )
        if self.num_paths > 1 and self.paths == "best":
            raise ValueError(
                f"num_paths: {self.num_paths} needs paths: nbest or sample; there is "
                "one best path"
            )
        if self.distance != "kl" and self.temperature != 1:
            raise ValueError(
                f"temperature: distance: {self.distance} has none; leave it out"
            )

    def at(self, updates: int) -> LossConf:
        """The same with the weight and temperature after `updates` updates."""
        return _at(self, updates)


@dataclass(frozen=True)
class HiddenConf:
    """One pair of layers whose outputs are compared frame by frame.

    Both are sub-modules of the encoders that give frames (B, T, D), after the
    subsampling, named as in `model.named_modules()`, say `encoder.encoders.5`. Where
    the widths differ, a linear projection of the student's output is trained; it is no
    part of the saved student.

    Attributes:
        student: name of the student's layer.
        teacher: name of the teacher's layer.
        loss: `mse` (mean over frames and dimensions) or `cosine` (mean over frames of
            1 - cosine).
        weight: factor in the training loss, a number or a schedule.
        teacher_index: which teacher, from 0, in the order of `teacher_config`.
    """

    student: str
    teacher: str
    loss: str = "mse"
    weight: Scheduled = 1.0
    teacher_index: int = 0

    def __post_init__(self) -> None:
        for name in ("student", "teacher"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} is not the name of a module"
                )
        one_of("loss", self.loss, ("mse", "cosine"))
        _schedulable(self, "weight", minimum=0)
        integer("teacher_index", self.teacher_index, minimum=0)

    def at(self, updates: int) -> HiddenConf:
        """The same with the weight after `updates` updates."""
        return _at(self, updates)


@dataclass(frozen=True)
class PruningConf:
    """How sparse a student becomes, and when.

    Updates are steps of the optimiser, counted from the start of training.

    Attributes:
        sparsity: share of the chosen weights that are zero in the end.
        end: update after which the masks stay as they are.
        start: update after which weights are first pruned.
        every: updates between two choices of the masks.
        initial_sparsity: share of zeros after the update `start`.
        pattern: `unstructured`, a block of outputs x inputs such as `1x16`, or `2:4`
            (two of four neighbours along the inputs; sparsity 0.5 at most).
        ranking: weights are compared within each `layer` (weight matrix), all of which
            become equally sparse, or `global`, over all of them.
        parameters: patterns of names, as in a shell, of the weights of linear,
            convolutional and recurrent layers that are pruned.
        exclude: patterns of names that are not pruned.
        others: patterns of names of other parameters (embeddings, biases, norms) that
            are pruned too.
    """

    sparsity: float
    end: int
    start: int = 0
    every: int = 100
    initial_sparsity: float = 0.0
    pattern: str = "unstructured"
    ranking: str = "layer"
    parameters: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        most = 0.5 if block_sides(self.pattern) is None else 1.0
        for name in ("sparsity", "initial_sparsity"):
            number(name, getattr(self, name), minimum=0)
        if self.sparsity > most or (self.sparsity == 1 and most == 1):
            raise ValueError(
                f"sparsity: {self.sparsity} is a share of the weights, with pattern: "
                f"{self.pattern} " + ("at most 0.5" if most < 1 else "below 1")
            )
        if self.initial_sparsity > self.sparsity:
            raise ValueError(
                f"initial_sparsity: {self.initial_sparsity} is above sparsity: "
                f"{self.sparsity}; pruning only makes a student sparser"
            )
        integer("start", self.start, minimum=0)
        integer("every", self.every, minimum=1)
        integer("end", self.end, minimum=1)
        if self.end < self.start:
            raise ValueError(f"end: {self.end} is before start: {self.start}")
        one_of("ranking", self.ranking, ("layer", "global"))
        for name in ("parameters", "exclude", "others"):
            patterns = getattr(self, name)
            if not isinstance(patterns, (list, tuple)) or not all(
                isinstance(each, str) for each in patterns
            ):
                raise ValueError(f"{name}: {patterns!r} is not a list of patterns")
            object.__setattr__(self, name, tuple(patterns))

    def is_due(self, updates: int) -> bool:
        """Whether masks are chosen after this update."""
        if updates == self.end:
            return True
        is_within = self.start <= updates < self.end
        return is_within and (updates - self.start) % self.every == 0

    def left(self, updates: int) -> float:
        """Share of the schedule that is still to come, from 1 to 0."""
        if updates >= self.end:
            return 0.0
        if updates <= self.start:
            return 1.0
        return (self.end - updates) / (self.end - self.start)

    def sparsity_at(self, updates: int) -> float:
        """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, equation 1 of the paper,
        at the last t at which masks were chosen; 0 before `start`."""
        if updates < self.start:
            return 0.0
        if updates < self.end:
            updates -= (updates - self.start) % self.every
        fading = self.left(updates) ** 3
        return self.sparsity + (self.initial_sparsity - self.sparsity) * fading


@dataclass(frozen=True)
class InitConf:
    """Which teacher, and which of its layers, a student starts from.

    Attributes:
        layers: `even` (evenly spaced layers, the first and the last among them), a
            list of the teacher's encoder layers, counted from 0, one for each of the
            student's, or a mapping {encoder: even or a list, decoder: even or a list}.
        teacher_index: which teacher, from 0, in the order of `teacher_config`.
    """

    layers: Layers | Mapping[str, Layers] = "even"
    teacher_index: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.layers, Mapping):
            for part, layers in self.layers.items():
                if part not in LISTED:
                    raise ValueError(f"layers: {part!r} is none of {list(LISTED)}")
                _check_layers(f"layers.{part}", layers)
        else:
            _check_layers("layers", self.layers)
        integer("teacher_index", self.teacher_index, minimum=0)

    def of(self, part: str) -> Layers:
        """`even` or the listed layers for a part of the model."""
        if isinstance(self.layers, Mapping):
            return self.layers.get(part, "even")
        return self.layers if part == "encoder" else "even"


def _check_layers(name: str, layers: Any) -> None:
    if layers == "even":
        return
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(
            f"{name}: {layers!r} is neither even nor a list of the teacher's layers"
            + (", nor {encoder: ..., decoder: ...}" if name == "layers" else "")
        )
    for index, layer in enumerate(layers):
        integer(f"{name}[{index}]", layer, minimum=0)


@dataclass(frozen=True)
class KDConf:
    """The whole of `kd_conf`.

    Attributes:
        losses: the KD losses; neither these nor `hidden` switches KD off.
        hidden: layers whose outputs are compared.
        hard_weight: factor of the student's own loss (1 - lambda in essence KD), a
            number or a schedule.
        rate: how the faster side is brought to the frame rate of the slower one where
            one is an integer multiple of the other: `stride` (every n-th frame) or
            `pool` (mean of n frames).
        true_lengths: encode padded batches with true lengths
            (espnet_kd.models.lengths), with or without KD; None: with KD (losses, or
            weights in the training data), else as stock ESPnet does.
        lean_joint: compute a transducer's joint network in chunks of nodes, without a
            tensor (B, T, U+1, V), with or without KD; None: with KD, else as stock
            ESPnet does.
        tolerance: the backward pass leaves out nodes of a lattice whose largest
            gradient is below this fraction of the batch's largest; 0 is exact.
        pruning: makes the student sparse while it learns, with or without KD.
        init_from_teacher: layers that the student takes from a teacher of its width
            before it is trained, with or without KD.
    """

    losses: tuple[LossConf, ...] = field(default_factory=tuple)
    hidden: tuple[HiddenConf, ...] = field(default_factory=tuple)
    hard_weight: Scheduled = 1.0
    rate: str = "stride"
    true_lengths: bool | None = None
    lean_joint: bool | None = None
    tolerance: float = 0.0
    pruning: PruningConf | None = None
    init_from_teacher: InitConf | None = None

    def __post_init__(self) -> None:
        _schedulable(self, "hard_weight", minimum=0)
        one_of("rate", self.rate, ("stride", "pool"))
        number("tolerance", self.tolerance, minimum=0)
        for name in ("true_lengths", "lean_joint"):
            value = getattr(self, name)
            if not isinstance(value, (bool, type(None))):
                raise ValueError(f"{name}: {value!r} is not true or false")

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is compared with a teacher in training."""
        return bool(self.losses or self.hidden)

    def at(self, updates: int) -> KDConf:
        """The same with every weight and temperature after `updates` updates."""
        losses = tuple(loss.at(updates) for loss in self.losses)
        hidden = tuple(pair.at(updates) for pair in self.hidden)
        now = _at(self, updates)
        if (losses, hidden) == (self.losses, self.hidden):
            return now
        return dataclasses.replace(now, losses=losses, hidden=hidden)


def parse_kd_conf(conf: Mapping[str, Any]) -> KDConf:
    """Validate the mapping under `kd_conf` of a training configuration.

    Raises:
        ValueError: an unknown key or a bad value; the message names the field and
            what it may be.
    """
    if not isinstance(conf, Mapping):
        raise ValueError(f"kd_conf: {conf!r} is not a mapping of names to values")
    conf = dict(conf)
    conf["losses"] = _parse_list(LossConf, conf, "losses", "`- nodes: ...`")
    hint = "`- {student: ..., teacher: ...}`"
    conf["hidden"] = _parse_list(HiddenConf, conf, "hidden", hint)
    for name, cls in (("pruning", PruningConf), ("init_from_teacher", InitConf)):
        if conf.get(name) is not None:
            conf[name] = _build(cls, conf[name], f"kd_conf.{name}")
    return _build(KDConf, conf, "kd_conf")


def _parse_list(cls: type, conf: dict[str, Any], name: str, hint: str) -> tuple:
    entries = conf.get(name) or []
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"kd_conf.{name}: must be a list, one entry ({hint}) for each")
    return tuple(
        _build(cls, entry, f"kd_conf.{name}[{index}]")
        for index, entry in enumerate(entries)
    )


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


def _schedulable(conf: Any, name: str, **limits: float) -> None:
    value = parse_scheduled(name, getattr(conf, name), **limits)
    object.__setattr__(conf, name, value)


def _at(conf: Any, updates: int) -> Any:
    now = {
        item.name: at(value, updates)
        for item in fields(conf)
        if isinstance(value := getattr(conf, item.name), Schedule)
    }
    return dataclasses.replace(conf, **now) if now else conf


def _or(names: tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
