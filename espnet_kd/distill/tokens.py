"""KD on the steps of an attention decoder."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.config.losses import TokensConf
from espnet_kd.distill.node_kinds import loss_of
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import known
from espnet_kd.distill.steps import kd_of_steps


@loss_of("tokens")
def tokens_kd(loss: TokensConf, sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums (B,) over the student's targets, <eos> included, and their number."""
    tokens = sides.student.tokens
    lengths = (tokens.targets != sides.symbols.padding).sum(1)
    teacher = known(sides.teacher.tokens(tokens.targets, lengths), "tokens")
    return kd_of_steps(loss, tokens.logits, teacher, lengths), lengths.sum()
