"""The transducer loss."""

from torch import Tensor

from espnet_kd.lattice.algebra import total_score


def transducer_loss(
    logits: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
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
        logits, labels, logit_lengths, label_lengths, blank=blank, backend=backend
    )
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean()
