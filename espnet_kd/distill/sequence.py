"""KD on whole label sequences: the hypotheses of an utterance are compared."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from espnet_kd.config.losses import SequenceConf
from espnet_kd.distill.compatibility import SCORED
from espnet_kd.distill.node_kinds import loss_of
from espnet_kd.distill.outputs import Frames, Tokens
from espnet_kd.distill.sharing import lists_of_rows
from espnet_kd.distill.sides import Sides
from espnet_kd.distill.signals import known
from espnet_kd.losses import full_sum_kd

SINGLE_HYPOTHESES = (
    "nodes: sequence: no two hypotheses in this batch share their audio, so this loss "
    "is zero; make the KD set with --nbest above 1 and keep the hypotheses of an "
    "utterance in one batch"
)


@loss_of("sequence")
def sequence_kd(loss: SequenceConf, sides: Sides) -> tuple[Tensor, Tensor]:
    """Sums (M,), one for each list of hypotheses, and the number of nodes.

    The losses are not weighted by utterance again.
    """
    if "scores" not in sides.cache:
        sides.cache["scores"] = _scores(sides)
    student, teacher = sides.cache["scores"]
    rows, lengths = lists_of_rows(sides.student.rows.index)
    if rows.size(1) == 1 and loss.is_divergence and torch.is_grad_enabled():
        sides.warn_once(SINGLE_HYPOTHESES)
    sums = full_sum_kd(
        student[rows],
        teacher[rows],
        lengths,
        distance=loss.distance,
        temperature=loss.temperature,
        reduction="none",
    )
    nodes = (lengths > 0).sum() if loss.is_divergence else lengths.sum()
    return sums, nodes


def _scores(sides: Sides) -> tuple[Tensor, Tensor]:
    """log P(labels) (B,) of each row, by the student and by its teacher.

    By the first of `SCORED` that is known of both.
    """
    for nodes in SCORED:
        scores = SCORERS[nodes](sides)
        if scores is not None:
            return scores
    raise ValueError(
        f"nodes: sequence: none of {', '.join(SCORED)} is known of both the student "
        "and the teacher on this batch; leave this loss out of kd_conf"
    )


def _lattice_scores(sides: Sides) -> tuple[Tensor, Tensor] | None:
    lattice = sides.student.lattice
    teacher = None if lattice is None else sides.reading.teacher_score(lattice)
    return None if teacher is None else (sides.reading.score(lattice), teacher)


def _frame_scores(sides: Sides) -> tuple[Tensor, Tensor] | None:
    frames = sides.student.frames
    answer = None if frames is None else sides.teacher.frames()
    if answer is None:
        return None
    lengths = known(sides.teacher.lengths, "lengths")
    teacher = dataclasses.replace(frames, logits=answer.log_probs(1.0), lengths=lengths)
    blank = sides.symbols.blank
    return ctc_scores(frames, blank), ctc_scores(teacher, blank)


def _token_scores(sides: Sides) -> tuple[Tensor, Tensor] | None:
    tokens, padding = sides.student.tokens, sides.symbols.padding
    if tokens is None:
        return None
    lengths = (tokens.targets != padding).sum(1)
    answer = sides.teacher.tokens(tokens.targets, lengths)
    if answer is None:
        return None
    teacher = Tokens(answer.log_probs(1.0), tokens.targets)
    return token_scores(tokens, padding), token_scores(teacher, padding)


SCORERS = {
    "lattice": _lattice_scores,
    "frames": _frame_scores,
    "tokens": _token_scores,
}


def ctc_scores(frames: Frames, blank: int) -> Tensor:
    """log P(labels) (B,) by CTC; -inf where the labels need more frames."""
    log_probs = frames.logits.float().log_softmax(-1).transpose(0, 1)
    arguments = (log_probs, frames.targets, frames.lengths, frames.label_lengths, blank)
    with torch.no_grad():
        losses = torch.nn.functional.ctc_loss(*arguments, reduction="none")
    # An infinite loss has a NaN gradient, even where it is masked out later.
    finite = torch.nn.functional.ctc_loss(
        *arguments, reduction="none", zero_infinity=True
    )
    return torch.where(losses.isfinite(), -finite, -losses)


def token_scores(tokens: Tokens, padding: int) -> Tensor:
    """log P(labels, <eos>) (B,) by an attention decoder."""
    valid = tokens.targets != padding
    log_probs = tokens.logits.float().log_softmax(-1)
    ids = tokens.targets.masked_fill(~valid, 0).unsqueeze(-1)
    return log_probs.gather(-1, ids).squeeze(-1).masked_fill(~valid, 0).sum(1)
