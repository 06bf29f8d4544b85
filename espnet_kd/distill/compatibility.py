"""Whether student, teachers and `kd_conf` fit each other, from plain data.

`make_student` passes what it finds in the models, the check before a recipe's first
stage what the configurations contain. Does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set

from espnet_kd.config.kd_conf import KDConf
from espnet_kd.config.losses import losses_of

# Nodes by which log P of a label sequence is known; the first that all models have.
SCORED = ("lattice", "frames", "tokens")


def with_known_nodes(conf: KDConf, have: Mapping[str, Set[str]]) -> KDConf:
    """The losses at nodes that all models have, none of them in a list of nodes.

    Args:
        conf: `losses` may hold `Alternatives`.
        have: nodes of each model, by its name in messages.

    Raises:
        ValueError: a loss asks for nodes that a model lacks.
    """
    common = set.intersection(*map(set, have.values()))
    if not common.intersection(SCORED):
        common.discard("sequence")
    losses = []
    for index, entry in enumerate(conf.losses):
        known = [
            loss for loss in losses_of(entry) if (loss.signal or loss.nodes) in common
        ]
        if not known:
            lists = "; ".join(f"{who}: {sorted(what)}" for who, what in have.items())
            raise ValueError(
                f"kd_conf.losses[{index}].nodes: {entry.nodes!r} is not in every model "
                f"({lists}). `frames` needs a CTC branch, `tokens` an attention "
                "decoder, `lattice`, `band` and `path` a transducer, `sequence` one of "
                "these that all models have"
            )
        losses += known
    return dataclasses.replace(conf, losses=tuple(losses))


def compares_frames(conf: KDConf) -> bool:
    """Whether encoder frames are compared, by the losses of `with_known_nodes`."""
    return bool(conf.hidden) or any(loss.nodes != "tokens" for loss in conf.losses)


def check_token_lists(
    student: Sequence[str], teacher: Sequence[str], name: str
) -> None:
    """Refuse token lists that differ: their posteriors cannot be compared."""
    if list(student) == list(teacher):
        return
    differing = [i for i, (s, t) in enumerate(zip(student, teacher)) if s != t]
    index = differing[0] if differing else min(len(student), len(teacher))
    at = [
        tokens[index] if index < len(tokens) else "(end)"
        for tokens in (student, teacher)
    ]
    raise ValueError(
        f"token_list: the student has {len(student)} tokens, {name} has "
        f"{len(teacher)}; they first differ at index {index}: {at[0]!r} and {at[1]!r}. "
        "Train the student with the teacher's token list, or use sequence-level KD "
        "(teacher_decode and kd_set; it goes through text)"
    )


def strides_to_common_rate(rates: dict[str, float]) -> dict[str, int]:
    """How many frames of each model make one frame of the slowest model.

    Args:
        rates: encoder frames per second, by a name for messages.

    Raises:
        ValueError: a rate is not an integer multiple of the slowest one.
    """
    slowest = min(rates, key=rates.get)
    strides = {}
    for name, rate in rates.items():
        ratio = rate / rates[slowest]
        strides[name] = round(ratio)
        # Each rate was counted over 10 s, so it may be one frame in 10 s off.
        tolerance = ratio * (0.1 / rate + 0.1 / rates[slowest])
        if abs(ratio - strides[name]) > tolerance:
            raise ValueError(
                f"frame rates: {name} makes {rate:.2f} encoder frames per second and "
                f"{slowest} {rates[slowest]:.2f}, a ratio of {ratio:.3f}; only "
                "integer ratios can be matched. Change the student's subsampling or "
                "hop length, or use sequence-level KD (no frame-level losses)"
            )
    return strides
