"""Log-probabilities of {some classes, all others} at nodes, from what was read there.

A reading keeps K classes of a node and sums all others into the rest. Any set of the
kept classes can then be told from the classes outside of the set, in log space:
1 - (sum of the set) would lose the others to rounding exactly where a peaky model makes
them small.
"""

import torch
from torch import Tensor

from espnet_kd.lattice.nodes import LOG_ZERO


def first_occurrences(ids: Tensor) -> Tensor:
    """(N, K) bool: false where a class was named before in its row."""
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
    """Log-probabilities of the classes in ``columns`` and of all others together.

    Args:
        scores: (N, K) logits of the kept classes.
        rest: (N,) logsumexp(logits / temperature) of the classes that are not kept.
        ids: (N, K) the kept classes; a repeated one counts once.
        columns: the set; may hold repeated classes.
        temperature: divides the logits.

    Returns:
        (N, k+1), all others last; about `LOG_ZERO` where there is no other.
    """
    scores = scores if temperature == 1 else scores / temperature
    rest = rest.clamp(min=LOG_ZERO).unsqueeze(1)
    chosen = ids[:, columns]
    if chosen.shape == ids.shape:
        others = rest
    else:
        outside = first_occurrences(ids)
        for id_ in chosen.unbind(1):
            outside = outside & (ids != id_.unsqueeze(1))
        others = scores.masked_fill(~outside, LOG_ZERO)
        others = torch.cat([others, rest], dim=1).logsumexp(1, keepdim=True)
    masses = torch.cat([scores[:, columns], others], dim=1)
    counted = torch.nn.functional.pad(first_occurrences(chosen), (0, 1), value=True)
    total = masses.masked_fill(~counted, LOG_ZERO).logsumexp(1, keepdim=True)
    return masses - total
