"""Sums and maxima over all alignments, in torch, on any device.

Node (t, u) lies on diagonal d = t + u, and both of its arcs lead to diagonal d + 1.
So T + U steps, each over all utterances and all rows u at once, walk the lattice.
All tensors here are float64: the sums run over hundreds of steps, and they are small
beside the logits.
"""

import torch
from torch import Tensor


def _skew(x: Tensor, fill: float) -> Tensor:
    """(B, T, U+1) -> (T+U, B, U+1): entry (d, b, u) is x[b, d - u, u]."""
    batch, frames, rows = x.shape
    diagonal = torch.arange(frames + rows - 1, device=x.device).unsqueeze(1)
    t = diagonal - torch.arange(rows, device=x.device)
    inside = (t >= 0) & (t < frames)
    index = t.clamp(0, frames - 1).expand(batch, -1, -1)
    return x.gather(1, index).masked_fill(~inside, fill).transpose(0, 1).contiguous()


def _unskew(x: Tensor, frames: int) -> Tensor:
    """(T+U, B, U+1) -> (B, T, U+1), the inverse of `_skew`."""
    _, batch, rows = x.shape
    t = torch.arange(frames, device=x.device).unsqueeze(1)
    index = t + torch.arange(rows, device=x.device)
    return x.transpose(0, 1).gather(1, index.expand(batch, -1, -1))


def _start(blank: Tensor) -> Tensor:
    """Scores (T+U+1, B, U+1) of all nodes by diagonal; only (0, 0) is reached yet."""
    steps, batch, rows = blank.shape
    scores = blank.new_full((steps + 1, batch, rows), -torch.inf)
    scores[0, :, 0] = 0
    return scores


def forward_backward(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor
) -> tuple:
    """Total score of each lattice and how often each arc is used.

    Args:
        blank: (B, T, U+1) float64 arc scores, -inf where there is no arc.
        label: same; its row u = U is -inf.
        frames: (B,) T_b >= 1.
        symbols: (B,) U_b.

    Returns:
        score (B,), and the posteriors (B, T, U+1) of the blank and of the label arcs.
    """
    num_frames = blank.shape[1]
    blank, label = _skew(blank, -torch.inf), _skew(label, -torch.inf)
    alpha = _start(blank)
    for d in range(len(blank)):
        by_label = alpha[d, :, :-1] + label[d, :, :-1]
        torch.add(alpha[d], blank[d], out=alpha[d + 1])
        arrived = alpha[d + 1, :, 1:]
        torch.logaddexp(arrived, by_label, out=arrived)
    end, utterance = frames + symbols, torch.arange(len(frames), device=blank.device)
    score = alpha[end, utterance, symbols]

    # Share of a node's mass that came by its label arc, against its blank arc. The two
    # sum to one even where rounding is coarse, unlike exp(alpha + arc + beta - score).
    by_label = torch.nn.functional.pad(
        (alpha[:-1] + label)[..., :-1], (1, 0), value=-torch.inf
    )
    odds = (by_label - (alpha[:-1] + blank)).nan_to_num(0)  # NaN: by neither
    blank_use, label_use = torch.sigmoid(-odds), torch.sigmoid(odds)[..., 1:]
    label_use = torch.nn.functional.pad(label_use, (0, 1))
    visits = torch.zeros_like(alpha)
    visits[end, utterance, symbols] = 1
    for d in reversed(range(len(blank))):
        blank_use[d] *= visits[d + 1]
        label_use[d, :, :-1] *= visits[d + 1, :, 1:]
        visits[d] += blank_use[d] + label_use[d]
    return score, _unskew(blank_use, num_frames), _unskew(label_use, num_frames)


def viterbi_rows(blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor):
    """Row u of each node of the best alignment.

    Of several best alignments it takes the one that emits every label earliest.

    Args: as `forward_backward`.

    Returns:
        (B, T+U) int64; U_b from the last node on.
    """
    blank, label = _skew(blank, -torch.inf), _skew(label, -torch.inf)
    best = _start(blank)[0]
    came_by_label = torch.zeros_like(blank, dtype=torch.long)
    for d in range(len(blank)):
        by_label = torch.nn.functional.pad(
            (best + label[d])[:, :-1], (1, 0), value=-torch.inf
        )
        best = best + blank[d]
        # a tie goes to blank: a path that ends in blanks emitted its labels early
        came_by_label[d] = by_label > best
        best = torch.maximum(best, by_label)
    last = frames + symbols - 1
    row = symbols
    rows = [row]
    for n in reversed(range(len(blank) - 1)):
        came = came_by_label[n].gather(1, row.unsqueeze(1)).squeeze(1)
        row = torch.where(n < last, row - came, symbols)
        rows.append(row)
    return torch.stack(rows[::-1], dim=1)
