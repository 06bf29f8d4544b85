"""Sums and maxima over all alignments, in torch, on any device.

An alignment takes one arc a step, so a node belongs to one step, its diagonal: t + u in
the regular topology, t in the modified one, where a label arc leads to (t+1, u+1). By
diagonals both look alike: from row u, blank leads to row u of the next diagonal and a
label to row u + 1. The lattices are walked diagonal by diagonal, over all utterances
and all rows at once; on a GPU the number of diagonals is what costs.

All scores here are float64: the sums run over hundreds of steps, and they are small
beside the logits. An arc of score -inf does not exist, its use is exactly zero.

Shapes: B utterances, T encoder frames, U labels, D diagonals (T + U, or T).
"""

from collections.abc import Callable

import torch
from torch import Tensor

# The two ways into a node, in the order in which `_sweep` reads rows u - 1 and u.
LABEL, BLANK = 0, 1
# The least score of a way. Two ways of -inf would have NaN as their shares.
LEAST = -1e300


def _skew(x: Tensor) -> Tensor:
    """(B, T, U+1) -> (T+U, B, U+1): entry (d, b, u) is x[b, d - u, u], else -inf."""
    # Padded to one frame more than there are diagonals and read as if it were not
    # there, each row starts one frame later than the row before.
    _, frames, rows = x.shape
    x = torch.nn.functional.pad(x.transpose(1, 2), (0, rows), value=-torch.inf)
    x = x.flatten(1)[:, :-rows].unflatten(1, (rows, frames + rows - 1))
    return x.permute(2, 0, 1)


def _unskew(x: Tensor) -> Tensor:
    """(T+U, B, U+1) -> (B, T, U+1), the inverse of `_skew`."""
    steps, _, rows = x.shape
    x = torch.nn.functional.pad(x.permute(1, 2, 0).flatten(1), (0, rows))
    return x.unflatten(1, (rows, steps + 1))[..., : steps + 1 - rows].transpose(1, 2)


def _rests(frames: Tensor, symbols: Tensor, steps: int, topology: str) -> Tensor:
    """(D, B, 1) true on the diagonals after the last one of an utterance."""
    length = frames + symbols if topology == "regular" else frames
    step = torch.arange(steps, device=frames.device).unsqueeze(1)
    return (step >= length).unsqueeze(2)


def _by_diagonal(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor, topology: str
) -> tuple[Tensor, Tensor]:
    """Arcs (B, T, U+1) by frame -> (D, B, U+1) by diagonal.

    Behind its last diagonal an utterance rests in row U_b, by blanks of score 0, so
    that all end on the same one.
    """
    if topology == "regular":
        blank, label = _skew(blank), _skew(label)
    else:
        blank, label = blank.transpose(0, 1), label.transpose(0, 1)
    rests = _rests(frames, symbols, len(blank), topology)
    return blank.masked_fill(rests, 0), label


def _ways(blank: Tensor, label: Tensor) -> Tensor:
    """Arcs by diagonal (D, B, U+1) -> (D, B, 2, U+1), by the row that they lead to."""
    ways = blank.new_full((*blank.shape[:2], 2, blank.shape[2]), -torch.inf)
    ways[:, :, BLANK] = blank
    ways[:, :, LABEL, 1:] = label[:, :, :-1]
    return ways


def _sweep(
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


def _shares(came: Tensor) -> Tensor:
    """Of a node's visits, those that came by label and those that came by blank.

    They sum to one even where rounding is coarse, unlike
    exp(alpha + arc + beta - score).
    """
    return came.clamp_(min=LEAST).softmax(2)


def _share_out(visits: Tensor, shares: Tensor) -> None:
    """Add to the visits (D+1, B, U+1) of each node those of the nodes it leads to.

    Args:
        shares: (D, B, 2, U+1) `_shares` of the nodes on diagonals 1..D.
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


def forward_backward(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    topology: str = "regular",
) -> tuple[Tensor, Tensor, Tensor]:
    """Total score of each lattice and how often each arc is used.

    Read from its end, a lattice is a lattice. So both halves are walked at once, as a
    batch of 2 B and in half the steps: to the diagonal where they meet, and back again.

    Args:
        blank: (B, T, U+1) float64 arc scores, -inf where there is no arc.
        label: same; its row u = U is -inf.
        frames: (B,) T_b >= 1.
        symbols: (B,) U_b, in the modified topology at most T_b.
        topology: "regular" or "modified".

    Returns:
        score (B,), -inf where there is no alignment, and the posteriors (B, T, U+1) of
        the blank and of the label arcs.
    """
    blank, label = _by_diagonal(blank, label, frames, symbols, topology)
    steps, batch, rows = blank.shape
    half = (steps + 1) // 2
    rest = steps - half
    ways = blank.new_full((half, 2 * batch, 2, rows), -torch.inf)
    ways[:, :batch] = _ways(blank[:half], label[:half])
    # From the end, row u is row U - u. The label that left a row now leads to it.
    ways[:rest, batch:, BLANK] = blank[half:].flip(0, 2)
    ways[:rest, batch:, LABEL] = label[half:].flip(0, 2)
    start = torch.cat([torch.zeros_like(symbols), rows - 1 - symbols])
    scores, came = _sweep(ways, start, torch.logaddexp)

    meet = scores[half, :batch] + scores[rest, batch:].flip(1)
    visited = meet.clamp(min=LEAST).softmax(1)
    visited = visited * (meet > -torch.inf)  # no alignment: no visits
    visits = torch.zeros_like(scores)
    visits[half, :batch] = visited
    visits[rest, batch:] = visited.flip(1)
    shares = _shares(came)
    _share_out(visits, shares)
    use = shares.mul_(visits[1:].unsqueeze(2))

    ahead, back = use[:, :batch], use[:rest, batch:].flip(0, 3)
    blank_use = torch.cat([ahead[:, :, BLANK], back[:, :, BLANK]])
    blank_use.masked_fill_(_rests(frames, symbols, steps, topology), 0)
    label_ahead = torch.nn.functional.pad(ahead[:, :, LABEL, 1:], (0, 1))
    label_use = torch.cat([label_ahead, back[:, :, LABEL]])
    by_frame = _unskew if topology == "regular" else lambda x: x.transpose(0, 1)
    return meet.logsumexp(1), by_frame(blank_use), by_frame(label_use)


def _walk_back(origin: Tensor, last: Tensor) -> Tensor:
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


def viterbi_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    topology: str = "regular",
) -> Tensor:
    """Row u of each node of the best alignment.

    Of several best alignments it takes the one that emits every label earliest.

    Args: as `forward_backward`.

    Returns:
        (B, D) int64; U_b after the last node.
    """
    ways = _ways(*_by_diagonal(blank, label, frames, symbols, topology))
    _, came = _sweep(ways, torch.zeros_like(symbols), torch.maximum)
    # a tie goes to blank: a path that ends in blanks emitted its labels early
    by_label = (came[:, :, LABEL] > came[:, :, BLANK]).long()
    origin = torch.arange(blank.shape[2], device=blank.device) - by_label
    return _walk_back(origin, symbols.unsqueeze(1)).squeeze(1)


def nbest_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    n: int,
    topology: str = "regular",
) -> tuple[Tensor, Tensor]:
    """Rows of the n best alignments, best first; the first is that of `viterbi_rows`.

    Every node keeps its n best ways, each with the row and the rank where it came from.

    Args: as `forward_backward`; ``n`` >= 1.

    Returns:
        rows (B, n, D) int64, as `viterbi_rows`; scores (B, n). Where an utterance has
        fewer than n alignments, the best one is repeated with score -inf.
    """
    blank, label = _by_diagonal(blank, label, frames, symbols, topology)
    ways = _ways(blank, label).unsqueeze(-1)
    steps, batch, _, rows, _ = ways.shape
    scores = ways.new_full((batch, rows + 1, n), -torch.inf)
    scores[:, 1, 0] = 0
    rank = torch.empty(steps, batch, rows, n, dtype=torch.long, device=blank.device)
    for arcs, order in zip(ways.unbind(0), rank.unbind(0)):
        by_blank = scores[:, 1:] + arcs[:, BLANK]
        by_label = scores[:, :-1] + arcs[:, LABEL]
        # stable, for a tie goes to blank as in `viterbi_rows`
        best, index = torch.cat([by_blank, by_label], dim=2).sort(
            dim=2, descending=True, stable=True
        )
        scores[:, 1:] = best[..., :n]
        order.copy_(index[..., :n])
    row = torch.arange(rows, device=blank.device).unsqueeze(1)
    origin = (row - rank // n) * n + rank % n
    last = symbols.unsqueeze(1) * n + torch.arange(n, device=blank.device)
    found = _walk_back(origin.flatten(2), last) // n
    scores = scores[:, 1:].flatten(1).gather(1, last)
    return torch.where(scores.unsqueeze(2) > -torch.inf, found, found[:, :1]), scores


def sample_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    n: int,
    topology: str = "regular",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rows of n alignments drawn from their posterior, independently.

    Drawn from the end backwards: the arc into a node is the label's with the
    probability that the node was reached by it.

    Args: as `forward_backward`; ``n`` >= 1; ``generator`` on the device of ``blank``.

    Returns:
        (B, n, D) int64, as `viterbi_rows`.
    """
    ways = _ways(*_by_diagonal(blank, label, frames, symbols, topology))
    _, came = _sweep(ways, torch.zeros_like(symbols), torch.logaddexp)
    by_label = _shares(came)[:, :, LABEL]
    like = {"dtype": blank.dtype, "device": blank.device}
    dice = torch.rand(len(ways), len(blank), n, generator=generator, **like)
    row = symbols.unsqueeze(1).expand(-1, n)
    rows = []
    for share, die in zip(reversed(by_label.unbind(0)), reversed(dice.unbind(0))):
        row = row - (die < share.gather(1, row)).long()
        rows.append(row)
    return torch.stack(rows[::-1], dim=2)


def window_ranges(
    blank_use: Tensor,
    label_use: Tensor,
    frames: Tensor,
    symbols: Tensor,
    width: int,
    topology: str = "regular",
) -> Tensor:
    """Rows of a window at each frame that holds most of the posterior.

    A window may start up to ``width - 1`` rows above the one before, in the modified
    topology one row: some alignment then stays inside. Where the best windows do not
    keep to that, or go back, starts are lowered, then raised, as little as they must
    be. As k2's get_rnnt_prune_ranges (Kuang et al. 2022, section 3.2).

    Args:
        blank_use: (B, T, U+1) posteriors of the arcs, by `forward_backward`.
        label_use: same.
        frames: (B,) T_b.
        symbols: (B,) U_b.
        width: 2 or more; enough for the last window to hold row U_b.
        topology: "regular" or "modified".

    Returns:
        (B, T, S) int64, S = min(width, U+1) consecutive rows.
    """
    _, longest, rows = blank_use.shape
    width = min(width, rows)
    if topology == "regular":
        # Those that leave the frame inside the window, without those that entered it
        # from the row below: a frame's visits to the window from start to end.
        inside = blank_use.unfold(2, width, 1).sum(-1)
        entered = label_use[:, :, : rows - width]
        held = inside - torch.nn.functional.pad(entered, (1, 0))
        climb = width - 1
    else:
        held = (blank_use + label_use).unfold(2, width, 1).sum(-1)
        climb = 1
    t = torch.arange(longest, device=frames.device)
    last = (symbols + 1 - width).clamp(min=0).unsqueeze(1)
    start = torch.where(t < frames.unsqueeze(1) - 1, held.argmax(2), last)
    ramp = climb * t
    # at most the later ones; high enough for the later ones; from row 0 on
    start = start.flip(1).cummin(1).values.flip(1)
    start = (start - ramp).flip(1).cummax(1).values.flip(1) + ramp
    start = torch.minimum(start, ramp)
    return start.unsqueeze(2) + torch.arange(width, device=frames.device)
