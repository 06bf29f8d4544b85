"""KD where an utterance is one sequence of nodes: CTC frames, attention tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.config.kd_conf import LossConf
from espnet_kd.distill.signals import Posteriors
from espnet_kd.losses import essence_kd, full_lattice_kd


def sequence_of_nodes_kd(
    student: Tensor,
    teacher: Posteriors,
    lengths: Tensor,
    loss: LossConf,
    keep: tuple[int, ...] = (),
) -> Tensor:
    """KD over sequences of nodes: logits (B, L, V) of both sides, sums (B,)."""
    options = dict(temperature=loss.temperature, reduction="none")
    if loss.classes == "full":
        # A sequence of nodes is a lattice without labels.
        none = lengths.new_zeros(len(lengths), 0)
        target = teacher.log_probs(loss.temperature) * loss.temperature
        most = min(student.size(1), target.size(1))
        return full_lattice_kd(
            student[:, :most].unsqueeze(2),
            target[:, :most].unsqueeze(2),
            none,
            lengths,
            torch.zeros_like(lengths),
            **options,
        )
    values, ids = teacher.topk(loss.k, keep, loss.temperature)
    most = min(student.size(1), values.size(1))
    return essence_kd(
        student[:, :most],
        values[:, :most],
        ids[:, :most],
        lengths,
        tail=loss.tail,
        **options,
    )
