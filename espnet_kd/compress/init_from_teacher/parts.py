"""Parts of two models that correspond: top-level modules and the layers in them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Mapping, NamedTuple, Sequence

from torch import Tensor, nn

from espnet_kd.config.init import Layers
from espnet_kd.models.versions import legacy

MultiSequential = legacy("nets.pytorch_backend.transformer.repeat").MultiSequential
FIELD = "kd_conf.init_from_teacher"
# Attributes that decide what a module computes, but none of its shapes.
SAME = (
    "stride",
    "dilation",
    "subsample",
    "subsampling_factor",
    "hop_length",
    "win_length",
)


class Stack(NamedTuple):
    """Layers one after the other; `pattern` finds a layer's number in a name."""

    path: str
    depth: int
    pattern: re.Pattern

    def number(self, name: str) -> int | None:
        """The layer to which a tensor or module belongs, None: to no layer."""
        match = self.pattern.match(name)
        return int(match[2]) if match else None

    def renamed(self, name: str, taken: Sequence[int]) -> str:
        """The name in the teacher where student layer i is teacher layer taken[i]."""
        return self.pattern.sub(lambda match: f"{match[1]}{taken[int(match[2])]}", name)


@dataclass
class Part:
    """One top-level module of both models and what is taken over."""

    path: str
    student: nn.Module
    teacher: nn.Module
    name: str
    taken: list[int] = field(default_factory=list)
    stack: Stack | None = None

    def renamed(self, name: str) -> str:
        return self.stack.renamed(name, self.taken) if self.stack else name


def match_parts(
    student: nn.Module, teacher: nn.Module, listed: Mapping[str, Layers], name: str
) -> tuple[list[Part], list[str]]:
    """The parts to take over, and the names of those that are left alone."""
    parts, left = [], []
    _check_normalisation(student, teacher, name)
    for path, module in student.named_children():
        if not has_state(module):
            continue
        other = getattr(teacher, path, None)
        if type(other) is type(module):
            part = Part(path, module, other, name)
            _choose_layers(part, listed.get(path, "even"))
            _check_modules(part)
            parts.append(part)
        elif path == "encoder":
            raise ValueError(
                f"{FIELD}: the student's encoder is a {type(module).__name__}, that of "
                f"{name} a {type(other).__name__}; use the same encoder, or leave "
                "init_from_teacher out"
            )
        else:
            left.append(path)
    for path, layers in listed.items():
        if layers != "even" and path not in [part.path for part in parts]:
            raise ValueError(
                f"{FIELD}.layers.{path}: {list(layers)} is listed, but student and "
                f"{name} have no {path} in common; leave it out"
            )
    return parts, left


def _choose_layers(part: Part, wanted: Layers) -> None:
    """Set the part's stack of layers and the teacher's layers for it."""
    stacks = _stacks(part.path, part.teacher)
    # The deepest holds the layers, a smaller one, say, the attentions of a decoder.
    part.stack = max(stacks, key=lambda stack: stack.depth, default=None)
    where = f"{FIELD}.layers.{part.path}"
    if part.stack is None:
        if wanted != "even":
            raise ValueError(f"{where}: the {part.path} has no layers; leave it out")
        return
    paths = {stack.path: stack for stack in _stacks(part.path, part.student)}
    depth = part.stack.depth
    mine = paths[part.stack.path].depth if part.stack.path in paths else depth
    if mine > depth:
        raise ValueError(
            f"{FIELD}: {part.stack.path}: the student has {mine} layers, {part.name} "
            f"has {depth}; give the student at most as many"
        )
    if wanted == "even":
        gaps = max(mine - 1, 1)
        part.taken = [round(layer * (depth - 1) / gaps) for layer in range(mine)]
        return
    part.taken = list(wanted)
    if len(part.taken) != mine:
        raise ValueError(
            f"{where}: {part.taken} are {len(part.taken)} layers, but the student has "
            f"{mine}; list one of the teacher's layers for each"
        )
    if max(part.taken) >= depth:
        raise ValueError(
            f"{where}: {part.name} has no layer {max(part.taken)}, its layers are 0 to "
            f"{depth - 1}"
        )


def _check_normalisation(student: nn.Module, teacher: nn.Module, name: str) -> None:
    """Refuse features that are normalised otherwise; not every way has a state."""
    ours, theirs = (type(getattr(m, "normalize", None)) for m in (student, teacher))
    if ours is not theirs:
        raise ValueError(
            f"{FIELD}: normalize of the student is {ours.__name__}, of {name} "
            f"{theirs.__name__}; give the student the teacher's normalize"
        )


def _check_modules(part: Part) -> None:
    """Refuse modules of other types, and strides that no shape tells."""
    theirs = dict(part.teacher.named_modules(prefix=part.path))
    for path, module in part.student.named_modules(prefix=part.path):
        other = theirs.get(part.renamed(path))
        if other is None or isinstance(module, (nn.Dropout, nn.Identity)):
            continue
        matters = has_state(module) or "act" in path.rpartition(".")[2]
        if matters and type(module) is not type(other):
            raise ValueError(
                f"{FIELD}: {path} of the student is a {type(module).__name__}, "
                f"{part.renamed(path)} of {part.name} a {type(other).__name__}; "
                "configure the student's as the teacher's"
            )
        for option in SAME:
            values = [_setting(m, option) for m in (module, other)]
            if values[0] != values[1]:
                raise ValueError(
                    f"{FIELD}: {path}.{option} is {values[0]} in the student and "
                    f"{values[1]} in {part.name}; give both the same subsampling"
                )


def _setting(module: nn.Module, option: str) -> Any:
    value = getattr(module, option, None)
    if option == "subsample" and value is not None:
        return math.prod(int(n) for n in value)  # of all layers, however many
    return value


def matched_names(
    part: Part, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> dict[str, str]:
    """Student's names of a part with the teacher's; refuse what is only in one."""
    start = f"{part.path}."
    names = {n: part.renamed(n) for n in student if n.startswith(start)}
    for ours, theirs in names.items():
        if theirs not in teacher:
            raise ValueError(
                f"{FIELD}: {ours} of the student has no {theirs} in {part.name}; "
                f"configure the student's {part.path} as the teacher's"
            )
    used = set(names.values())
    for theirs in teacher:
        number = part.stack.number(theirs) if part.stack else None
        untaken = number is not None and number not in part.taken
        if theirs.startswith(start) and theirs not in used and not untaken:
            raise ValueError(
                f"{FIELD}: {theirs} of {part.name} has no place in the student; "
                f"configure the student's {part.path} as the teacher's"
            )
    return names


def _stacks(path: str, module: nn.Module) -> list[Stack]:
    """Outermost stacks of layers at and below a module."""
    start = re.escape(path)
    children = dict(module.named_children())
    rnns = [c for c, m in children.items() if isinstance(m, nn.RNNBase)]
    if isinstance(module, nn.RNNBase):
        pattern = rf"({start}\.\w+_l)(\d+)(?=_reverse$|$)"
        return [Stack(path, module.num_layers, re.compile(pattern))]
    if isinstance(module, (nn.ModuleList, MultiSequential)):
        # A list of whole recurrent networks (VGG, RNN) is no stack, its members are.
        networks = any(
            isinstance(inner, nn.RNNBase)
            for child in children.values()
            for inner in child.children()
        )
        if has_state(module) and not networks:
            pattern = rf"({start}\.)(\d+)(?![^.])"
            return [Stack(path, len(children), re.compile(pattern))]
    elif rnns and all(name[-1].isdigit() for name in rnns):
        pattern = rf"({start}\.[a-z]+)(\d+)(?![^.])"  # birnn0, bt0, birnn1 ..
        return [Stack(path, len(rnns), re.compile(pattern))]
    return [s for c, m in children.items() for s in _stacks(f"{path}.{c}", m)]


def has_state(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers that are stored."""
    return bool(module.state_dict())
