"""KD on the steps of an attention decoder."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.config.kd_conf import LossConf
from espnet_kd.distill.kinds import loss_of
from espnet_kd.distill.sequence_of_nodes import sequence_of_nodes_kd
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import known


@loss_of("tokens")
def tokens_kd(loss: LossConf, sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums (B,) over the student's targets, <eos> included, and their number."""
    tokens = sides.student.tokens
    lengths = (tokens.targets != sides.symbols.padding).sum(1)
    teacher = known(sides.teacher.tokens(tokens.targets, lengths), "tokens")
    return sequence_of_nodes_kd(tokens.logits, teacher, lengths, loss), lengths.sum()
