"""`kd_conf.init_from_teacher`: a student that starts from its teacher's weights.

The student takes some of the teacher's layers, and of each the leading units, heads
and channels (`layouts`). A student of the teacher's size becomes the teacher.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from espnet_kd.compress.init_from_teacher.axes import cut, misfit, sizes_cut
from espnet_kd.compress.init_from_teacher.layouts import layouts
from espnet_kd.compress.init_from_teacher.parts import (
    FIELD,
    Part,
    has_state,
    match_parts,
    matched_names,
)
from espnet_kd.config.init import LISTED, InitConf


def init_from_teacher(
    student: nn.Module, teacher: nn.Module, conf: InitConf, name: str
) -> dict[str, str]:
    """Copy the teacher's parameters and buffers into the student, cut where smaller.

    A part (decoder, ctc, joint_network ..) that the teacher does not have, or has of
    another class, is left as it is; the encoder must be taken over.

    Args:
        student: stock ESPnet model, changed in place.
        teacher: stock ESPnet model of the same task.
        conf: which layers.
        name: the teacher's name, for messages.

    Returns:
        Name of the teacher's tensor for each tensor of the student that was set.

    Raises:
        ValueError: the student is wider or deeper than the teacher, or parts of the
            same class do not fit; the student is unchanged then.
    """
    if list(student.token_list) != list(teacher.token_list):
        raise ValueError(
            f"{FIELD}: the student's token list ({len(student.token_list)} tokens) is "
            f"not that of {name} ({len(teacher.token_list)} tokens); use the teacher's"
        )
    listed = {part: conf.of(part) for part in LISTED}
    parts, left = match_parts(student, teacher, listed, name)
    ours, theirs = layouts(student), layouts(teacher)
    source, target = teacher.state_dict(), student.state_dict()
    names: dict[str, str] = {}
    for part in parts:
        names.update(matched_names(part, target, source))
    for ours_name, their_name in names.items():
        reason = misfit(ours[ours_name], theirs[their_name])
        if reason:
            raise ValueError(
                f"{FIELD}: {ours_name} of the student and {their_name} of {name} "
                f"{reason}"
            )
        _check_filters(ours_name, target, source[their_name], name)
    with torch.no_grad():
        for ours_name, their_name in names.items():
            value = cut(source[their_name], ours[ours_name], theirs[their_name])
            target[ours_name].copy_(value)
    cuts = set().union(*(sizes_cut(ours[s], theirs[t]) for s, t in names.items()))
    _log(parts, left, cuts, teacher, name)
    return names


def _check_filters(
    name: str, student: dict[str, Tensor], value: Tensor, teacher: str
) -> None:
    """Refuse other mel filters of the same shape: the features would differ."""
    if name.endswith(".melmat") and not torch.allclose(
        student[name], value.to(student[name])
    ):
        raise ValueError(
            f"{FIELD}: {name} of the student differs from that of {teacher}; give the "
            "student the teacher's frontend_conf (fs, fmin, fmax)"
        )


def _log(
    parts: list[Part],
    left: list[str],
    cuts: set[tuple[int, int]],
    teacher: nn.Module,
    name: str,
) -> None:
    layers = [
        f"{part.path} layers {' '.join(map(str, part.taken))} of {part.stack.depth}"
        for part in parts
        if part.stack
    ]
    widths = [f"{large} to {small}" for large, small in sorted(cuts)]
    known = {*left, *(part.path for part in parts)}
    unused = [p for p, m in teacher.named_children() if has_state(m) and p not in known]
    logging.info(
        "Student initialised from %s: %s; %s; sizes cut: %s; left at their own start: "
        "%s; not taken: %s",
        name,
        ", ".join(part.path for part in parts),
        ", ".join(layers) or "no layers",
        ", ".join(widths) or "none",
        ", ".join(left) or "nothing",
        ", ".join(unused) or "nothing",
    )
