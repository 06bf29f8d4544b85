"""Log-probabilities of {some classes, rest} at nodes, from what was read there.

A reading keeps K classes of a node and sums all others into the rest. For any set of
the kept classes the rest is summed again, in log space: 1 - (sum of the set) would lose
it to rounding exactly where a peaky model makes it small.
"""

import torch
from torch import Tensor

from espnet_kd.lattice.masks import LOG_ZERO


def first_occurrences(ids: Tensor) -> Tensor:
    """(N, K) bool: false where a class occurs a second time in its row."""
    in_order, order = ids.sort(dim=1, stable=True)
    repeats = in_order[:, 1:] == in_order[:, :-1]
    repeats = torch.nn.functional.pad(repeats, (1, 0))
    return ~torch.zeros_like(repeats).scatter(1, order, repeats)


def class_log_probs(
    scores: Tensor,
    rest: Tensor,
    ids: Tensor,
    columns: slice,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probabilities of the classes in ``columns`` and of the rest.

    Args:
        scores: (N, K) logits of the kept classes.
        rest: (N,) logsumexp(logits / temperature) of the classes that are not kept.
        ids: (N, K) the kept classes; a repeated one counts once.
        columns: the set; may hold repeated classes.
        temperature: divides the logits.

    Returns:
        (N, k+1), the rest last; about `LOG_ZERO` where no class is left.
    """
    scores = scores if temperature == 1 else scores / temperature
    rest = rest.clamp(min=LOG_ZERO).unsqueeze(1)
    chosen = ids[:, columns]
    if chosen.shape != ids.shape:
        outside = first_occurrences(ids)
        for id_ in chosen.unbind(1):
            outside = outside & (ids != id_.unsqueeze(1))
        rest = torch.cat([scores.masked_fill(~outside, LOG_ZERO), rest], dim=1)
        rest = rest.logsumexp(1, keepdim=True)
    masses = torch.cat([scores[:, columns], rest], dim=1)
    counted = torch.nn.functional.pad(first_occurrences(chosen), (0, 1), value=True)
    total = masses.masked_fill(~counted, LOG_ZERO).logsumexp(1, keepdim=True)
    return masses - total
