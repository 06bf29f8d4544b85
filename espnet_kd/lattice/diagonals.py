"""Transducer lattices walked diagonal by diagonal, over all utterances at once.

An alignment takes one arc per step, so a node belongs to one step, its diagonal: t + u
in the regular topology, t in the modified one, where a label arc leads to (t+1, u+1).
By diagonals both look alike: from row u, blank leads to row u of the next diagonal and
a label to row u + 1.

Shapes: B utterances, T encoder frames, U labels, D diagonals (T + U, or T).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# The two ways into a node, in the order in which `sweep` reads rows u - 1 and u.
LABEL, BLANK = 0, 1
# The lowest score of a way. The shares of two ways of -inf would be NaN.
LEAST = -1e300


def skew(x: Tensor) -> Tensor:
    """(B, T, U+1) -> (T+U, B, U+1): entry (d, b, u) is x[b, d - u, u], else -inf."""
    # Padded to one frame more than there are diagonals and read as if it were not
    # there, each row starts one frame later than the row before.
    _, frames, rows = x.shape
    x = torch.nn.functional.pad(x.transpose(1, 2), (0, rows), value=-torch.inf)
    x = x.flatten(1)[:, :-rows].unflatten(1, (rows, frames + rows - 1))
    return x.permute(2, 0, 1)


def unskew(x: Tensor) -> Tensor:
    """(T+U, B, U+1) -> (B, T, U+1), the inverse of `skew`."""
    steps, _, rows = x.shape
    x = torch.nn.functional.pad(x.permute(1, 2, 0).flatten(1), (0, rows))
    return x.unflatten(1, (rows, steps + 1))[..., : steps + 1 - rows].transpose(1, 2)


def rests(frames: Tensor, symbols: Tensor, steps: int, topology: str) -> Tensor:
    """(D, B, 1) true on the diagonals after the last one of an utterance."""
    length = frames + symbols if topology == "regular" else frames
    step = torch.arange(steps, device=frames.device).unsqueeze(1)
    return (step >= length).unsqueeze(2)


def by_diagonal(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor, topology: str
) -> tuple[Tensor, Tensor]:
    """Arcs (B, T, U+1) by frame -> (D, B, U+1) by diagonal.

    After its last diagonal an utterance stays in row U_b, by blanks of score 0, so
    that all end on the same one.
    """
    if topology == "regular":
        blank, label = skew(blank), skew(label)
    else:
        blank, label = blank.transpose(0, 1), label.transpose(0, 1)
    ended = rests(frames, symbols, len(blank), topology)
    return blank.masked_fill(ended, 0), label


def ways(blank: Tensor, label: Tensor) -> Tensor:
    """Arcs by diagonal (D, B, U+1) -> (D, B, 2, U+1), by the row that they lead to."""
    ways = blank.new_full((*blank.shape[:2], 2, blank.shape[2]), -torch.inf)
    ways[:, :, BLANK] = blank
    ways[:, :, LABEL, 1:] = label[:, :, :-1]
    return ways


def sweep(
    ways: Tensor, start: Tensor, combine: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Scores of all nodes.

    Args:
        ways: (D, B, 2, U+1) arcs of each diagonal, by the row that they lead to.
        start: (B,) row where the lattice starts.
        combine: torch.logaddexp, or torch.maximum.

    Returns:
        scores (D+1, B, U+1); and of the nodes on diagonals 1..D what came by label and
        what came by blank (D, B, 2, U+1).
    """
    steps, batch, _, rows = ways.shape
    # a row of -inf before row 0, from where its label would come
    scores = ways.new_full((steps + 1, batch, rows + 1), -torch.inf)
    scores[0].scatter_(1, start.unsqueeze(1) + 1, 0)
    came = torch.empty_like(ways)
    for old, arcs, both, by_label, by_blank, new in zip(
        scores.unfold(2, rows, 1).unbind(0),
        ways.unbind(0),
        came.unbind(0),
        came[:, :, LABEL].unbind(0),
        came[:, :, BLANK].unbind(0),
        scores[1:, :, 1:].unbind(0),
    ):
        torch.add(old, arcs, out=both)
        combine(by_label, by_blank, out=new)
    return scores[..., 1:], came


def shares(came: Tensor) -> Tensor:
    """Of a node's visits, those that came by label and those that came by blank.

    They sum to one even where rounding is coarse, unlike
    exp(alpha + arc + beta - score).
    """
    return came.clamp_(min=LEAST).softmax(2)


def share_out(visits: Tensor, shares: Tensor) -> None:
    """Add to the visits (D+1, B, U+1) of each node those of the nodes it leads to.

    Args:
        shares: (D, B, 2, U+1) `shares` of the nodes on diagonals 1..D.
    """
    arcs = (
        visits[:-1],
        shares[:, :, BLANK],
        visits[1:],
        visits[:-1, :, :-1],
        shares[:, :, LABEL, 1:],
        visits[1:, :, 1:],
    )
    for same, by_blank, next_same, below, by_label, next_above in zip(
        *(reversed(x.unbind(0)) for x in arcs)
    ):
        same.addcmul_(by_blank, next_same)
        below.addcmul_(by_label, next_above)


def walk_back(origin: Tensor, last: Tensor) -> Tensor:
    """States on the way back from the last one.

    Args:
        origin: (D, B, M) state of diagonal d from where state m of diagonal d + 1 came.
        last: (B, n) state after the last arc.

    Returns:
        (B, n, D) state on each diagonal.
    """
    states = origin.new_empty(len(origin), *last.shape)
    for came, state in zip(reversed(origin.unbind(0)), reversed(states.unbind(0))):
        torch.gather(came, 1, last, out=state)
        last = state
    return states.permute(1, 2, 0)
