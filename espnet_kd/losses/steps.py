"""KD on steps: CTC frames or tokens of an attention decoder, (B, L, V).

A sequence of steps is a lattice without labels, so that every class set and every
divergence of a lattice works here too, and is read in chunks as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from espnet_kd.lattice.masks import upcast
from espnet_kd.lattice.nodes import Nodes, make_layout
from espnet_kd.losses.classes import ClassSet
from espnet_kd.losses.divergences import Divergence
from espnet_kd.losses.lattice import LatticeTerm, lattice_losses
from espnet_kd.losses.log_space import collapse, soften
from espnet_kd.losses.topk import topk_targets


class StepTeacher(Protocol):
    """Answers about steps; each method raises ValueError where it has none."""

    def log_probs(self, temperature: float) -> Tensor:
        """Of all classes, (B, L, V)."""

    def topk(
        self, k: int, keep: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the k best classes, not renormalised, and their ids.

        Both (B, L, k); the classes in ``keep`` are always among them.
        """


class OnlineSteps(NamedTuple):
    """Answers from a teacher's logits (B, L, V)."""

    logits: Tensor

    @torch.no_grad()
    def log_probs(self, temperature: float) -> Tensor:
        return soften(self.logits, temperature)

    @torch.no_grad()
    def topk(
        self, k: int, keep: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_probs = self.log_probs(temperature)
        return topk_targets(log_probs, min(k, log_probs.shape[-1]), keep=keep)


class StoredSteps(NamedTuple):
    """Top-k log-probabilities that were stored for each step.

    They carry the temperature and the classes that they were made with.
    """

    values: Tensor  # (B, L, K)
    ids: Tensor  # (B, L, K); a step with fewer classes repeats one of them

    def log_probs(self, temperature: float) -> Tensor:
        raise ValueError(
            "teacher: stored steps hold top-k classes only; use classes 'topk', or a "
            "teacher that computes"
        )

    def topk(
        self, k: int, keep: Sequence[int], temperature: float
    ) -> tuple[Tensor, Tensor]:
        return self.values, self.ids


def steps_kd(
    student: Tensor,
    teacher: StepTeacher,
    lengths: Tensor,
    *,
    classes: str | ClassSet = "full",
    divergence: str | Divergence = "kl",
    temperature: float = 1.0,
    keep: Sequence[int] = (),
) -> Tensor:
    """Divergence from a teacher, summed over the steps of each utterance.

    Args:
        student: (B, L, V) logits.
        teacher: of the same steps; never gets a gradient.
        lengths: (B,) steps; anything in the padding.
        classes: `Full()`, `TopK(k, tail)`, or where there is a blank `Collapsed()`,
            {blank, rest}; or a name.
        divergence: "kl", "reverse_kl", "jsd", or a `Divergence`.
        temperature: divides the logits of both sides; the loss is multiplied by its
            square.
        keep: classes that are always among the k best, blank of CTC as the first.

    Returns:
        (B,) sums.

    Raises:
        ValueError: shapes, lengths or options do not fit, or a question that the
            teacher cannot answer.
    """
    if student.dim() != 3:
        raise ValueError(f"student: shape {tuple(student.shape)}, expected (B, L, V)")
    blank = keep[0] if keep else 0
    no_labels = lengths.new_zeros(len(lengths), 0)
    logits = student.unsqueeze(2)
    layout = make_layout(logits, no_labels, lengths, torch.zeros_like(lengths), blank)
    rows = _Rows(teacher, tuple(student.shape), tuple(keep), temperature)
    term = LatticeTerm(rows, layout.nodes, classes, divergence, temperature)
    _, (sums,) = lattice_losses(
        logits, layout, [term], blank=blank, with_transducer=False
    )
    return sums


class _Rows:
    """A teacher of steps as the teacher of a lattice with one row."""

    def __init__(
        self,
        steps: StepTeacher,
        shape: tuple[int, int, int],
        keep: tuple[int, ...],
        temperature: float,
    ) -> None:
        self.steps = steps
        self.shape = shape
        self.keep = keep
        self.temperature = temperature

    @cached_property
    def all_log_probs(self) -> Tensor:
        """(B, L, V)."""
        log_probs = self.steps.log_probs(self.temperature).detach()
        self._check(log_probs, self.shape)
        # The graph of the loss holds this teacher: its logits must not outlive this.
        self.steps = None
        return log_probs

    def log_probs(self, nodes: Nodes, temperature: float) -> Tensor:
        return upcast(self.all_log_probs[nodes.utterance, nodes.frame])

    def topk(
        self, nodes: Nodes, k: int, blank: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        values, ids = self.steps.topk(k, self.keep, temperature)
        self._check(values, (*self.shape[:2], ids.shape[-1]))
        where, device = (nodes.utterance, nodes.frame), nodes.row.device
        values, ids = (x.to(device)[where] for x in (values, ids))
        return upcast(values.detach()), ids.long()

    def collapsed(self, nodes: Nodes, ids: Tensor, temperature: float) -> Tensor:
        if not self.keep:
            raise ValueError(
                "classes: Collapsed() needs a blank, which these steps do not have; "
                "use Full() or TopK(), or pass the class of blank in keep"
            )
        return collapse(self.log_probs(nodes, temperature), ids)

    def _check(self, x: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(x.shape) != shape:
            raise ValueError(
                f"teacher: shape {tuple(x.shape)} differs from {shape}, expected for "
                f"student logits of shape {self.shape}"
            )
