"""The transducer loss."""

from __future__ import annotations

from torch import Tensor

from espnet_kd.lattice.algebra import total_score
from espnet_kd.lattice.factored import Logits


def transducer_loss(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """-log P(labels | audio) of each utterance (Graves 2012).

    Arguments and errors as `total_score`.

    Args:
        reduction: "none" for (B,), "sum", or "mean", the sum divided by B.

    Raises:
        ValueError: also where ``reduction`` is unknown.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(
            f"reduction: {reduction!r} is not one of 'none', 'sum', 'mean'"
        )
    loss = -total_score(
        logits,
        labels,
        logit_lengths,
        label_lengths,
        blank=blank,
        ranges=ranges,
        topology=topology,
        backend=backend,
    )
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()
