"""Sums and maxima over all alignments, by k2 (what 1.23.4 and 1.24 share)."""

import k2
import torch
from torch import Tensor


def forward_backward(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor
) -> tuple:
    """`torch_backend.forward_backward` by k2's recursion."""
    start = torch.zeros_like(frames)
    # k2 has labels before frames, and one column more than frames for label arcs
    px = torch.nn.functional.pad(
        label[:, :, :-1].transpose(1, 2), (0, 1), value=-torch.inf
    )
    score, (px_use, py_use) = k2.mutual_information_recursion(
        px.contiguous(),
        blank.transpose(1, 2).contiguous(),
        boundary=torch.stack([start, start, symbols, frames], dim=1),
        return_grad=True,
    )
    label_use = torch.nn.functional.pad(px_use[:, :, :-1].transpose(1, 2), (0, 1))
    return score, py_use.transpose(1, 2), label_use


def _lattice_fsa(blank: Tensor, label: Tensor) -> k2.Fsa:
    """One utterance's lattice as an FSA; arc attribute ``row`` is u where it starts.

    States are numbered along t first: of two equally good ways into a node k2 keeps the
    one from the higher state, which so is the blank's, as in `torch_backend`.

    Args:
        blank: (U_b+1, T_b) arc scores.
        label: same; its last row is not used.
    """
    rows, frames = blank.shape
    node = torch.arange(rows * frames, device=blank.device).view(rows, frames)
    # Of the last frame's blanks only the last ends an alignment: as the FSA's final
    # arc, with label -1, it leads to state rows * frames.
    is_arc = torch.ones(rows, frames, 2, dtype=torch.bool, device=blank.device)
    is_arc[:-1, -1, 0] = False
    is_arc[-1, :, 1] = False
    symbol = torch.zeros_like(is_arc, dtype=torch.long)
    symbol[..., 1] = 1
    symbol[-1, -1, 0] = -1
    arcs = [
        torch.stack([node, node], dim=-1),
        torch.stack([node + 1, node + frames], dim=-1),
        symbol,
        torch.stack([blank, label], dim=-1).float().view(torch.int32),
    ]
    fsa = k2.Fsa(torch.stack([x[is_arc].int() for x in arcs], dim=1))
    fsa.row = (node // frames).unsqueeze(-1).expand(-1, -1, 2)[is_arc].int()
    return fsa


def viterbi_rows(
    blank: Tensor, label: Tensor, frames: Tensor, symbols: Tensor
) -> Tensor:
    """`torch_backend.viterbi_rows` by k2's shortest path.

    k2 holds arc scores in float32: alignments that differ by less are ties to it.
    """
    sizes = zip((symbols + 1).tolist(), frames.tolist(), strict=True)
    lattices = [
        _lattice_fsa(y.t()[:u, :t], x.t()[:u, :t])
        for y, x, (u, t) in zip(blank, label, sizes, strict=True)
    ]
    best = k2.shortest_path(k2.create_fsa_vec(lattices), use_double_scores=True)
    steps = torch.arange(blank.shape[1] + blank.shape[2] - 1, device=blank.device)
    rows = symbols.unsqueeze(1).repeat(1, len(steps))
    rows[steps < (frames + symbols).unsqueeze(1)] = best.row.long()
    return rows
