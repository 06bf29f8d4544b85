"""`kd_conf.init_from_teacher`: a student that starts from its teacher's weights.

The student copies some of the teacher's layers unchanged, and everything outside the
layers. A student of the teacher's size becomes the teacher.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Mapping

import torch
from torch import Tensor, nn

from espnet_kd.compress.layer_stacks import Stack, has_state, stacks_in
from espnet_kd.config.init import LISTED, InitConf, Layers

FIELD = "kd_conf.init_from_teacher"
# Attributes that affect a module's output but not its shapes, described for messages.
SAME = {
    "h": "number of attention heads",
    "num_heads": "number of attention heads",
    "stride": "subsampling",
    "dilation": "subsampling",
    "subsample": "subsampling",
    "subsampling_factor": "subsampling",
    "hop_length": "frontend_conf",
    "win_length": "frontend_conf",
}


@dataclass
class Part:
    """One top-level module of both models, and what is copied."""

    path: str
    student: nn.Module
    teacher: nn.Module
    name: str
    taken: list[int] = field(default_factory=list)
    stack: Stack | None = None

    def renamed(self, name: str) -> str:
        return self.stack.renamed(name, self.taken) if self.stack else name


def init_from_teacher(
    student: nn.Module, teacher: nn.Module, conf: InitConf, name: str
) -> dict[str, str]:
    """Copy the teacher's parameters and buffers into a student of the same width.

    A part (decoder, ctc, joint_network ..) that the teacher lacks, or whose class
    differs, is left unchanged; the encoder must be copied.

    Args:
        student: stock ESPnet model, changed in place.
        teacher: stock ESPnet model of the same task.
        conf: which layers.
        name: the teacher's name, for messages.

    Returns:
        Name of the teacher's tensor for each tensor of the student that was set.

    Raises:
        ValueError: the student is deeper than the teacher, or parts of the same class
            differ in more than their number of layers; the student is then unchanged.
    """
    if list(student.token_list) != list(teacher.token_list):
        raise ValueError(
            f"{FIELD}: the student's token list ({len(student.token_list)} tokens) is "
            f"not {name}'s ({len(teacher.token_list)} tokens); use the teacher's"
        )
    listed = {part: conf.of(part) for part in LISTED}
    parts, left = _match_parts(student, teacher, listed, name)
    source, target = teacher.state_dict(), student.state_dict()
    names: dict[str, str] = {}
    for part in parts:
        names.update(_matched_names(part, target, source))
    for ours, theirs in names.items():
        _check_shapes(ours, theirs, target, source, name)
        _check_filters(ours, target[ours], source[theirs], name)
    with torch.no_grad():
        for ours, theirs in names.items():
            target[ours].copy_(source[theirs])
    _log(parts, left, teacher, name)
    return names


# ----------------------------------------------------------------- parts and layers


def _match_parts(
    student: nn.Module, teacher: nn.Module, listed: Mapping[str, Layers], name: str
) -> tuple[list[Part], list[str]]:
    """The parts to copy, and the names of those left unchanged."""
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
                f"{FIELD}: the student's encoder is a {type(module).__name__}, "
                f"{name}'s a {type(other).__name__}; use the same encoder, or leave "
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
    """Set the part's stack of layers and the chosen layers of the teacher."""
    stacks = stacks_in(part.path, part.teacher)
    # The deepest holds the layers; a smaller one may be a decoder's attentions.
    part.stack = max(stacks, key=lambda stack: stack.depth, default=None)
    where = f"{FIELD}.layers.{part.path}"
    if part.stack is None:
        if wanted != "even":
            raise ValueError(f"{where}: the {part.path} has no layers; leave it out")
        return
    paths = {stack.path: stack for stack in stacks_in(part.path, part.student)}
    depth = part.stack.depth
    mine = paths[part.stack.path].depth if part.stack.path in paths else depth
    if mine > depth:
        raise ValueError(
            f"{FIELD}: {part.stack.path}: the student has {mine} layers, {part.name} "
            f"has {depth}; the student must not have more"
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
            f"{where}: {part.name} has no layer {max(part.taken)}; its layers are 0 to "
            f"{depth - 1}"
        )


def _matched_names(
    part: Part, student: dict[str, Tensor], teacher: dict[str, Tensor]
) -> dict[str, str]:
    """Names in a part of the student -> the teacher's; refuse names of one only."""
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
                f"{FIELD}: {theirs} of {part.name} is not in the student; "
                f"configure the student's {part.path} as the teacher's"
            )
    return names


# -------------------------------------------------------------------------- refusals


def _check_normalisation(student: nn.Module, teacher: nn.Module, name: str) -> None:
    """Refuse a different normalisation of features; not every kind has a state."""
    ours, theirs = (type(getattr(m, "normalize", None)) for m in (student, teacher))
    if ours is not theirs:
        raise ValueError(
            f"{FIELD}: normalize of the student is {ours.__name__}, of {name} "
            f"{theirs.__name__}; give the student the teacher's normalize"
        )


def _check_modules(part: Part) -> None:
    """Refuse other types of modules, or settings without shapes (heads, strides)."""
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
        for option, meaning in SAME.items():
            values = [_setting(m, option) for m in (module, other)]
            if values[0] != values[1]:
                raise ValueError(
                    f"{FIELD}: {path}.{option} is {values[0]} in the student and "
                    f"{values[1]} in {part.name}; give both the same {meaning}"
                )


def _setting(module: nn.Module, option: str) -> Any:
    value = getattr(module, option, None)
    if option == "subsample" and value is not None:
        return math.prod(int(n) for n in value)  # over all layers
    return value


def _check_shapes(
    ours: str,
    theirs: str,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    name: str,
) -> None:
    """Refuse a tensor of another shape: layers are copied completely or not at all."""
    shape, wanted = student[ours].shape, teacher[theirs].shape
    if shape == wanted:
        return
    remedy = (
        "layers are copied completely, so configure the student as the teacher except "
        "for the number of layers, or leave init_from_teacher out"
    )
    if ours in teacher and teacher[ours].shape == shape:
        remedy = "these layers differ: list others, with the first layer first"
    raise ValueError(
        f"{FIELD}: the shape of {ours} in the student is {tuple(shape)}, of {theirs} "
        f"in {name} {tuple(wanted)}; {remedy}"
    )


def _check_filters(name: str, student: Tensor, value: Tensor, teacher: str) -> None:
    """Refuse other mel filters of the same shape: the features would differ."""
    if name.endswith(".melmat") and not torch.allclose(student, value.to(student)):
        raise ValueError(
            f"{FIELD}: {name} of the student differs from {teacher}'s; give the "
            "student the teacher's frontend_conf (fs, fmin, fmax)"
        )


def _log(parts: list[Part], left: list[str], teacher: nn.Module, name: str) -> None:
    layers = [
        f"{part.path} layers {' '.join(map(str, part.taken))} of {part.stack.depth}"
        for part in parts
        if part.stack
    ]
    known = {*left, *(part.path for part in parts)}
    unused = [p for p, m in teacher.named_children() if has_state(m) and p not in known]
    logging.info(
        "Student initialised from %s: %s; %s; not changed: %s; not taken: " "%s",
        name,
        ", ".join(part.path for part in parts),
        ", ".join(layers) or "no layers",
        ", ".join(left) or "nothing",
        ", ".join(unused) or "nothing",
    )
