"""`Lattices` as functions, for a single result: each call reads the joint network.

Arguments of each: logits (B, T, U+1, V), dense or factored, labels (B, U),
logit_lengths (B,), label_lengths (B,), and the options blank, ranges, topology and
backend, as for `Lattices.read`, which raises the errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from espnet_kd.lattice.lattices import Lattices
from espnet_kd.lattice.logits import Logits


def total_score(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    **options,
) -> Tensor:
    """log P(labels | audio) (B,): `Lattices.total_score`.

    Differentiable once. Arguments and errors as `Lattices.read`.
    """
    lattices = Lattices.read(logits, labels, logit_lengths, label_lengths, **options)
    return lattices.total_score()


def transducer_loss(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    reduction: str = "none",
    **options,
) -> Tensor:
    """-log P(labels | audio) of each utterance (Graves 2012).

    Arguments and errors as `Lattices.read`.

    Args:
        reduction: "none" for (B,), "sum", or "mean", the sum divided by B.

    Raises:
        ValueError: also where ``reduction`` is unknown.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(
            f"reduction: {reduction!r} is not one of 'none', 'sum', 'mean'"
        )
    loss = -total_score(logits, labels, logit_lengths, label_lengths, **options)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()


@torch.no_grad()
def occupancy(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    **options,
) -> Tensor:
    """Posterior (B, T, U+1, 2) of leaving a node by blank or by its label.

    `Lattices.occupancy`. No gradient. Arguments and errors as `Lattices.read`.
    """
    lattices = Lattices.read(logits, labels, logit_lengths, label_lengths, **options)
    return lattices.occupancy()


@torch.no_grad()
def best_path(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best alignment of ``labels``: path (B, N, 2), path_lengths (B,), score (B,).

    `Lattices.best_path`. No gradient. Arguments and errors as `Lattices.read`.
    """
    lattices = Lattices.read(logits, labels, logit_lengths, label_lengths, **options)
    return lattices.best_path()


@torch.no_grad()
def nbest_paths(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    n: int,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """The n best alignments: paths (B, n, N, 2), path_lengths (B,), scores (B, n).

    `Lattices.nbest`. No gradient. Arguments and errors as `Lattices.read`.
    """
    lattices = Lattices.read(logits, labels, logit_lengths, label_lengths, **options)
    return lattices.nbest(n)


@torch.no_grad()
def sample_paths(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    n: int,
    *,
    generator: torch.Generator | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor]:
    """n random alignments: paths (B, n, N, 2), path_lengths (B,), scores (B, n).

    `Lattices.sample`. No gradient. Arguments and errors as `Lattices.read`.
    """
    lattices = Lattices.read(logits, labels, logit_lengths, label_lengths, **options)
    return lattices.sample(n, generator)
