"""The band of a lattice that holds most of the posterior."""

import torch
from torch import Tensor

from espnet_kd.lattice.backends import check_alignable, choose_backend
from espnet_kd.lattice.masks import check_lengths


@torch.no_grad()
def prune_ranges(
    occupancies: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    width: int,
    *,
    topology: str = "regular",
    backend: str | None = None,
) -> Tensor:
    """Rows to keep at each frame: a window of the rows that are visited most.

    The windows make a band (Kuang et al. 2022, "Pruned RNN-T", section 3.2): the first
    one starts at row 0, the last one of an utterance holds row U_b, and none leaves
    0..U. A start is never below the one before and at most S - 1 rows above it (in the
    modified topology one row), so that alignments stay inside. No gradient.

    Args:
        occupancies: (B, T, U+1, 2) of `occupancy`.
        logit_lengths: (B,) encoder frames, at least 1.
        label_lengths: (B,) labels.
        width: rows of a window, 2 or more.
        topology: "regular" or "modified".
        backend: "k2", "torch", or None for k2 where it is installed, else torch.

    Returns:
        ranges (B, T, S) int64, for `total_score` and the others. S = min(width, U+1);
        more where the windows of the shortest utterances could otherwise not reach U_b,
        in the regular topology ceil(U_b / T_b) + 1.

    Raises:
        ValueError: shapes or lengths do not fit, a width below 2, more labels than
            frames in the modified topology, an unknown topology or backend.
        ImportError: "k2" is forced and cannot be imported.
    """
    if occupancies.dim() != 4 or occupancies.shape[3] != 2:
        raise ValueError(
            f"occupancies: shape {tuple(occupancies.shape)}, expected (B, T, U+1, 2)"
        )
    if width < 2:
        raise ValueError(
            f"width: {width} leaves at most one alignment; take 2 or more, or "
            "best_path for the best one"
        )
    batch, longest, rows, _ = occupancies.shape
    device = occupancies.device
    frames = check_lengths("logit_lengths", logit_lengths, batch, longest).to(device)
    symbols = check_lengths("label_lengths", label_lengths, batch, rows - 1).to(device)
    check_alignable(frames, symbols, topology)
    if topology == "regular":
        labels_a_frame = (symbols + frames - 1).div(frames, rounding_mode="floor")
        width = max(width, *(labels_a_frame + 1).tolist()) if batch else width
    blank_use, label_use = occupancies.double().unbind(-1)
    module = choose_backend(backend, device)
    return module.window_ranges(blank_use, label_use, frames, symbols, width, topology)
