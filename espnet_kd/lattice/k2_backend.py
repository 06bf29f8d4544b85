"""Sums and maxima over all alignments, by k2 (what 1.23.4 and 1.24 share)."""

import k2
import torch
from k2.fsa import RaggedArc
from torch import Tensor


def _boundary(frames: Tensor, symbols: Tensor) -> Tensor:
    """(B, 4): k2's first and last symbol and frame of each utterance."""
    start = torch.zeros_like(frames)
    return torch.stack([start, start, symbols, frames], dim=1)


def _label_arcs(label: Tensor, topology: str, fill: float) -> Tensor:
    """(B, T, U+1) -> k2's (B, U, T+1) regular, (B, U, T) modified."""
    x = label[:, :, :-1].transpose(1, 2)
    return torch.nn.functional.pad(x, (0, int(topology == "regular")), value=fill)


def _padded(x: Tensor, fill: float) -> Tensor:
    """(B, T, U+1) with the label, and the frames, that k2 1.23.4 needs: T >= U >= 1.

    k2 reads nothing outside the lengths of an utterance.
    """
    _, frames, rows = x.shape
    padding = (0, int(rows == 1), 0, max(0, max(rows - 1, 1) - frames))
    return torch.nn.functional.pad(x, padding, value=fill)


def forward_backward(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    topology: str = "regular",
) -> tuple[Tensor, Tensor, Tensor]:
    """`torch_backend.forward_backward` by k2's recursion."""
    _, longest, rows = blank.shape
    score, (label_use, blank_use) = k2.mutual_information_recursion(
        _label_arcs(_padded(label, -torch.inf), topology, -torch.inf).contiguous(),
        _padded(blank, -torch.inf).transpose(1, 2).contiguous(),
        boundary=_boundary(frames, symbols),
        return_grad=True,
    )
    label_use = torch.nn.functional.pad(label_use, (0, 0, 0, 1))
    exists = (score > -torch.inf).view(-1, 1, 1)
    blank_use, label_use = (
        torch.where(exists, x.transpose(1, 2)[:, :longest, :rows], 0.0)
        for x in (blank_use, label_use)
    )
    return score, blank_use, label_use


def _lattices(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor, topology: str
) -> k2.Fsa:
    """The lattices as a vector of FSAs; arc attribute ``node`` numbers (b, u, t).

    All have a state for each node of the padded batch, and a final one. States are
    numbered along t first: of two equally good ways into a node k2 keeps the one from
    the higher state, here the blank's, as in `torch_backend`.
    """
    batch, longest, rows = blank.shape
    device = blank.device
    final = rows * longest
    score = torch.stack([blank, label], dim=-1).transpose(1, 2)  # (B, U+1, T, 2)
    node = torch.arange(batch * final, device=device).view(batch, rows, longest, 1)
    u = torch.arange(rows, device=device).view(-1, 1, 1)
    t = torch.arange(longest, device=device).view(-1, 1)
    symbol = torch.tensor([0, 1], device=device)
    next_u = u + symbol
    next_t = t + (1 - symbol if topology == "regular" else 1)
    last_u, last_t = (x.view(-1, 1, 1, 1) for x in (symbols, frames))
    ends = (next_u == last_u) & (next_t == last_t)
    is_arc = (score > -torch.inf) & (ends | (next_t < last_t))
    arcs = [
        u * longest + t,
        torch.where(ends, final, next_u * longest + next_t),
        torch.where(ends, -1, symbol),  # k2's label of the arcs into the final state
        score.float().contiguous().view(torch.int32),
    ]
    arcs = torch.stack([x.expand_as(is_arc)[is_arc].int() for x in arcs], dim=1)
    leaving = torch.nn.functional.pad(is_arc.sum(-1).flatten(1), (0, 1)).flatten()
    starts = torch.nn.functional.pad(leaving.cumsum(0), (1, 0)).int()
    states = k2.RaggedShape.regular_ragged_shape(batch, final + 1).to(device)
    shape = states.compose(k2.ragged.create_ragged_shape2(row_splits=starts))
    fsas = k2.Fsa(RaggedArc(shape, arcs))
    fsas.node = node.expand_as(is_arc)[is_arc].int()
    return fsas


def viterbi_rows(
    blank: Tensor,
    label: Tensor,
    frames: Tensor,
    symbols: Tensor,
    topology: str = "regular",
) -> Tensor:
    """`torch_backend.viterbi_rows` by k2's shortest path.

    k2 holds arc scores in float32: alignments that differ by less are ties to it.
    """
    _, longest, rows = blank.shape
    fsas = _lattices(blank, label, frames, symbols, topology)
    node = k2.shortest_path(fsas, use_double_scores=True).node.long()
    utterance = node.div(rows * longest, rounding_mode="floor")
    u = node.div(longest, rounding_mode="floor") % rows
    t = node % longest
    is_regular = topology == "regular"
    steps = longest + rows - 1 if is_regular else longest
    path = symbols.unsqueeze(1).repeat(1, steps)
    path[utterance, t + u if is_regular else t] = u
    return path


def window_ranges(
    blank_use: Tensor,
    label_use: Tensor,
    frames: Tensor,
    symbols: Tensor,
    width: int,
    topology: str = "regular",
) -> Tensor:
    """`torch_backend.window_ranges` by k2, which may change the width."""
    _, longest, rows = blank_use.shape
    if topology == "modified":
        # k2 looks at blanks only and subtracts what entered the window from below
        blank_use, label_use = blank_use + label_use, torch.zeros_like(label_use)
    ranges = k2.get_rnnt_prune_ranges(
        _label_arcs(_padded(label_use, 0), topology, 0).contiguous(),
        _padded(blank_use, 0).transpose(1, 2).contiguous(),
        _boundary(frames, symbols),
        min(width, max(rows, 2)),  # 1.24 prints a warning where it has to do this
    )
    return ranges[:, :longest, :rows]
