"""Total score, arc occupation and best path of transducer lattices."""

import functools
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_kd.lattice import torch_backend
from espnet_kd.lattice.nodes import (
    LOG_ZERO,
    Grid,
    length_mask,
    make_grid,
    mask_nodes,
    node_scores,
)

BACKENDS = ("k2", "torch")


@functools.cache
def _import_k2() -> tuple[ModuleType | None, str]:
    """k2's backend, or None and why it is not there.

    pip installs k2 1.23.4 where it then cannot be loaded, so only an import tells.
    """
    try:
        from espnet_kd.lattice import k2_backend
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"{type(error).__name__}: {error}"
    return k2_backend, ""


def has_k2() -> bool:
    """True where k2 can be imported."""
    return _import_k2()[0] is not None


def choose_backend(backend: str | None, device: torch.device) -> ModuleType:
    """The module that computes: k2 where it is installed, else torch.

    Args:
        backend: "k2" or "torch" to force one, or None.
        device: where the tensors are; a k2 built without CUDA is not taken for them.

    Raises:
        ValueError: the name is unknown.
        ImportError: k2 is forced and cannot be imported.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend: {backend!r} is not one of {BACKENDS} or None")
    if backend == "torch":
        return torch_backend
    module, reason = _import_k2()
    if backend == "k2" and module is None:
        raise ImportError(
            f"backend: 'k2' was asked for, but k2 cannot be imported ({reason}). "
            "Install the k2 that was built for this torch, or pass backend='torch'"
        )
    if module is None:
        return torch_backend
    if backend is None and device.type == "cuda" and not module.k2.with_cuda:
        return torch_backend
    return module


class _TotalScore(torch.autograd.Function):
    """The derivative of a lattice's total score by an arc score is its occupation."""

    @staticmethod
    def forward(ctx, blank, label, grid, backend):
        score, *use = backend.forward_backward(
            *_mask_arcs(blank, label, grid), grid.frames, grid.symbols
        )
        ctx.save_for_backward(*(x.to(blank.dtype) for x in use))
        return score.to(blank.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        blank_use, label_use = ctx.saved_tensors
        gradient = gradient.view(-1, 1, 1)
        return gradient * blank_use, gradient * label_use[:, :, :-1], None, None


def _mask_arcs(blank: Tensor, label: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Arc scores in float64, both (B, T, U+1), with -inf where no arc is."""
    label = torch.nn.functional.pad(label.double(), (0, 1))
    blank = blank.double().masked_fill(~grid.nodes, -torch.inf)
    return blank, label.masked_fill(~grid.emits, -torch.inf)


def _arcs(logits, labels, logit_lengths, label_lengths, blank):
    """Checked grid and its arc scores, with NaN and Inf of the padding left out."""
    grid = make_grid(logits, labels, logit_lengths, label_lengths, blank)
    if (grid.frames < 1).any():
        raise ValueError("logit_lengths: an utterance of 0 frames has no alignment")
    scores = node_scores(mask_nodes(logits, grid.nodes), grid.labels[:, :-1], blank)
    return grid, [x.clamp(min=LOG_ZERO) for x in scores]


def total_score(
    logits: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    backend: str | None = None,
) -> Tensor:
    """log P(labels | audio), summed over all alignments (Graves 2012).

    The sums are done in float64 on either backend. Differentiable once.

    Args:
        logits: (B, T, U+1, V), raw.
        labels: (B, U) ids, anything in the padding; blank is not a label.
        logit_lengths: (B,) encoder frames, at least 1.
        label_lengths: (B,) labels.
        blank: class of blank.
        backend: "k2", "torch", or None for k2 where it is installed, else torch.

    Returns:
        (B,) float32, float64 for float64 logits.

    Raises:
        ValueError: shapes, lengths or labels do not fit, an unknown backend.
        ImportError: "k2" is forced and cannot be imported.
    """
    module = choose_backend(backend, logits.device)
    grid, arcs = _arcs(logits, labels, logit_lengths, label_lengths, blank)
    return _TotalScore.apply(*arcs, grid, module)


@torch.no_grad()
def occupancy(
    logits: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Posterior that an alignment of ``labels`` leaves a node by blank, by its label.

    Arguments and errors as `total_score`. No gradient.

    Returns:
        (B, T, U+1, 2): [..., 0] blank, [..., 1] label; zero where there is no arc. The
        blanks of an utterance sum to T_b, the labels of each row u < U_b to 1.
    """
    module = choose_backend(backend, logits.device)
    grid, arcs = _arcs(logits, labels, logit_lengths, label_lengths, blank)
    _, *use = module.forward_backward(
        *_mask_arcs(*arcs, grid), grid.frames, grid.symbols
    )
    return torch.stack(use, dim=-1).to(arcs[0].dtype)


@torch.no_grad()
def best_path(
    logits: Tensor,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best alignment of ``labels`` (Viterbi) as the nodes that it visits.

    It visits N_b = T_b + U_b nodes, from (0, 0) to (T_b-1, U_b). Of equally good
    alignments "torch" takes the one that emits every label earliest; "k2" does so too
    on a CPU, but holds arc scores in float32. No gradient.

    Arguments and errors as `total_score`.

    Returns:
        path (B, N, 2) int64 (t, u), padded with the last node of each utterance, so
        that it can index; path_lengths (B,) int64; score (B,), the log-probability of
        the alignment.
    """
    module = choose_backend(backend, logits.device)
    grid, arcs = _arcs(logits, labels, logit_lengths, label_lengths, blank)
    blank_arc, label_arc = _mask_arcs(*arcs, grid)
    u = module.viterbi_rows(blank_arc, label_arc, grid.frames, grid.symbols)
    path_lengths = grid.frames + grid.symbols
    u = u[:, : int(path_lengths.max())]
    step = torch.arange(u.shape[1], device=u.device)
    t = torch.minimum(step, path_lengths.unsqueeze(1) - 1) - u
    utterance = torch.arange(len(u), device=u.device).unsqueeze(1)
    moves = torch.nn.functional.pad(u[:, 1:] > u[:, :-1], (0, 1))
    scores = torch.where(
        moves, label_arc[utterance, t, u], blank_arc[utterance, t, u]
    ).masked_fill(~length_mask(path_lengths, u.shape[1]), 0)
    return torch.stack([t, u], -1), path_lengths, scores.sum(1).to(arcs[0].dtype)
