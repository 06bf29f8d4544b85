"""Sums and maxima over all alignments, in torch, on any device.

The lattices are walked diagonal by diagonal (`diagonals`); on a GPU the number of
diagonals is what costs. All scores here are float64: the sums run over hundreds of
steps, and they are small next to the logits. An arc of score -inf does not exist; its
posterior is exactly zero.

Shapes: B utterances, T encoder frames, U labels, D diagonals (T + U, or T).
"""

import torch
from torch import Tensor

from espnet_kd.lattice import diagonals
from espnet_kd.lattice.diagonals import BLANK, LABEL, LEAST


def forward_backward(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    topology: str = "regular",
) -> tuple[Tensor, Tensor, Tensor]:
    """Total score of each lattice and posterior of each arc.

    A lattice read backwards is a lattice too. So both halves are walked at once, as a
    batch of 2 B in half the steps: to the diagonal where they meet, and back again.

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
    blank, label = diagonals.by_diagonal(blank, label, frames, symbols, topology)
    steps, batch, rows = blank.shape
    half = (steps + 1) // 2
    rest = steps - half
    ways = blank.new_full((half, 2 * batch, 2, rows), -torch.inf)
    ways[:, :batch] = diagonals.ways(blank[:half], label[:half])
    # From the end, row u is row U - u. The label that left a row now leads to it.
    ways[:rest, batch:, BLANK] = blank[half:].flip(0, 2)
    ways[:rest, batch:, LABEL] = label[half:].flip(0, 2)
    start = torch.cat([torch.zeros_like(symbols), rows - 1 - symbols])
    scores, came = diagonals.sweep(ways, start, torch.logaddexp)

    meet = scores[half, :batch] + scores[rest, batch:].flip(1)
    visited = meet.clamp(min=LEAST).softmax(1)
    visited = visited * (meet > -torch.inf)  # no alignment: no visits
    visits = torch.zeros_like(scores)
    visits[half, :batch] = visited
    visits[rest, batch:] = visited.flip(1)
    shares = diagonals.shares(came)
    diagonals.share_out(visits, shares)
    use = shares.mul_(visits[1:].unsqueeze(2))

    ahead, back = use[:, :batch], use[:rest, batch:].flip(0, 3)
    blank_use = torch.cat([ahead[:, :, BLANK], back[:, :, BLANK]])
    blank_use.masked_fill_(diagonals.rests(frames, symbols, steps, topology), 0)
    label_ahead = torch.nn.functional.pad(ahead[:, :, LABEL, 1:], (0, 1))
    label_use = torch.cat([label_ahead, back[:, :, LABEL]])
    by_frame = (
        diagonals.unskew if topology == "regular" else lambda x: x.transpose(0, 1)
    )
    return meet.logsumexp(1), by_frame(blank_use), by_frame(label_use)


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
    ways = diagonals.ways(
        *diagonals.by_diagonal(blank, label, frames, symbols, topology)
    )
    _, came = diagonals.sweep(ways, torch.zeros_like(symbols), torch.maximum)
    # a tie goes to blank: a path that ends in blanks emitted its labels early
    by_label = (came[:, :, LABEL] > came[:, :, BLANK]).long()
    origin = torch.arange(blank.shape[2], device=blank.device) - by_label
    return diagonals.walk_back(origin, symbols.unsqueeze(1)).squeeze(1)


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
    topology one row: some alignment then stays inside. Where the best windows break
    this rule, or move back, starts are lowered, then raised, as little as possible.
    As k2's get_rnnt_prune_ranges (Kuang et al. 2022, section 3.2).

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
