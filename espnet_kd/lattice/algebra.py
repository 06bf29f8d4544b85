"""Total score, arc occupation and best path of transducer lattices."""

import functools
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_kd.lattice import torch_backend
from espnet_kd.lattice.classes import class_log_probs
from espnet_kd.lattice.factored import Logits, Nodes, nodes_of
from espnet_kd.lattice.nodes import LOG_ZERO, Grid, length_mask, make_grid
from espnet_kd.lattice.reading import read_nodes

BACKENDS = ("k2", "torch")
TOPOLOGIES = ("regular", "modified")
# Arcs used less often are not used: products with denormal numbers are several times
# slower on a CPU, and float32 does not see the difference.
UNUSED = 1e-10


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


class Arcs(NamedTuple):
    """A batch of lattices, ready for sums and maxima over alignments."""

    blank: Tensor  # (B, T, U+1) log-probabilities; `LOG_ZERO` where there is no node
    label: Tensor  # same; the row u = U is not used
    grid: Grid  # its nodes are those of the band
    topology: str
    backend: ModuleType  # of sums over alignments
    decoder: ModuleType  # of best alignments

    def masked(self) -> tuple[Tensor, Tensor]:
        """Scores in float64, with -inf where no arc is."""
        emits = self.grid.nodes & self.grid.emits
        return (
            self.blank.double().masked_fill(~self.grid.nodes, -torch.inf),
            self.label.double().masked_fill(~emits, -torch.inf),
        )

    def total(self) -> Tensor:
        """log P(labels | audio) of each utterance (B,), differentiable once."""
        return _TotalScore.apply(self.blank, self.label, self)

    def forward_backward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Total scores (B,), and how often each arc is used (B, T, U+1), twice."""
        frames, symbols = self.grid.frames, self.grid.symbols
        return self.backend.forward_backward(
            *self.masked(), frames, symbols, self.topology
        )


class _TotalScore(torch.autograd.Function):
    """The derivative of a lattice's total score by an arc score is its occupation."""

    @staticmethod
    def forward(ctx, blank: Tensor, label: Tensor, arcs: Arcs) -> Tensor:
        score, *use = arcs.forward_backward()
        if blank.dtype == torch.float32:
            use = [x.masked_fill(x < UNUSED, 0) for x in use]
        ctx.save_for_backward(*(x.to(blank.dtype) for x in use))
        return score.to(blank.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        gradient = gradient.view(-1, 1, 1)
        return *(gradient * use for use in ctx.saved_tensors), None


def restrict(grid: Grid, ranges: Tensor | None) -> Grid:
    """The grid with the nodes of a band only.

    Args:
        ranges: (B, T, S) rows u that exist at each frame, anything in the padding;
            None: all.

    Raises:
        ValueError: the shape does not fit, or a row is none of the lattice.
    """
    if ranges is None:
        return grid
    batch, frames, rows = grid.nodes.shape
    if ranges.dim() != 3 or ranges.shape[:2] != (batch, frames):
        raise ValueError(
            f"ranges: shape {tuple(ranges.shape)}, expected (B, T, S) = "
            f"({batch}, {frames}, S)"
        )
    in_time = length_mask(grid.frames, frames).unsqueeze(2)
    ranges = ranges.to(grid.nodes.device).long().masked_fill(~in_time, 0)
    if ranges.numel() and not 0 <= int(ranges.min()) <= int(ranges.max()) < rows:
        raise ValueError(f"ranges: has rows outside 0..{rows - 1}")
    band = torch.zeros_like(grid.nodes).scatter(2, ranges, True)
    return grid._replace(nodes=grid.nodes & band)


def arc_ids(grid: Grid, nodes: Nodes, blank: int) -> Tensor:
    """Classes of the two arcs that leave each node: (N, 2), label and blank.

    Where no label arc leaves a node, blank stands for the label.
    """
    labels = grid.labels[nodes.utterance, nodes.row]
    return torch.stack([labels, torch.full_like(labels, blank)], dim=1)


def make_arcs(
    grid: Grid,
    nodes: Nodes,
    log_probs: Tensor,
    topology: str = "regular",
    backend: str | None = None,
) -> Arcs:
    """Lattices from what was read at the nodes of ``grid``.

    Args:
        nodes: all nodes of the grid, in any order.
        log_probs: (N, 2 or more); of the label and of blank.

    Raises:
        ValueError: an unknown topology or backend, or an utterance without alignment.
        ImportError: "k2" is forced and cannot be imported.
    """
    module = choose_backend(backend, log_probs.device)
    check_alignable(grid.frames, grid.symbols, topology)
    empty = log_probs.new_full(grid.nodes.shape, LOG_ZERO)
    label, blank = (
        empty.index_put(tuple(nodes), log_probs[:, i].clamp(min=LOG_ZERO))
        for i in range(2)
    )
    # torch finds best paths faster than k2, and keeps arc scores in float64
    decoder = torch_backend if backend is None else module
    return Arcs(blank, label, grid, topology, module, decoder)


def check_alignable(frames: Tensor, symbols: Tensor, topology: str) -> None:
    """ValueError where the topology is unknown or leaves an utterance no alignment.

    Args:
        frames: (B,) T_b.
        symbols: (B,) U_b.
    """
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology: {topology!r} is not one of {TOPOLOGIES}")
    if (frames < 1).any():
        raise ValueError("logit_lengths: an utterance of 0 frames has no alignment")
    if topology == "modified" and (frames < symbols).any():
        raise ValueError(
            "label_lengths: an utterance has more labels than frames, which the "
            "modified topology (one symbol a frame) cannot align; drop it, or use "
            "topology='regular'"
        )


def arcs_of(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    blank: int,
    ranges: Tensor | None,
    topology: str,
    backend: str | None,
) -> Arcs:
    """The arcs of a batch of lattices; arguments as `total_score`."""
    choose_backend(backend, logits.device)  # a wrong name is refused before the work
    grid = make_grid(logits, labels, logit_lengths, label_lengths, blank)
    grid = restrict(grid, ranges)
    nodes = nodes_of(grid.nodes)
    ids = arc_ids(grid, nodes, blank)
    read = read_nodes(logits, nodes, ids, (1.0,))
    log_probs = class_log_probs(read.scores, read.rest[:, 0], ids, slice(None))
    return make_arcs(grid, nodes, log_probs, topology, backend)


def total_score(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    backend: str | None = None,
) -> Tensor:
    """log P(labels | audio), summed over all alignments (Graves 2012).

    The sums are done in float64 on either backend. Differentiable once.

    Args:
        logits: (B, T, U+1, V), raw, dense or factored.
        labels: (B, U) ids, anything in the padding; blank is not a label.
        logit_lengths: (B,) encoder frames, at least 1.
        label_lengths: (B,) labels.
        blank: class of blank.
        ranges: (B, T, S) int64, rows u that exist at each frame (`prune_ranges`);
            None: all of them.
        topology: "regular", or "modified", where each frame emits one symbol, blank or
            a label.
        backend: "k2", "torch", or None for k2 where it is installed, else torch.

    Returns:
        (B,) float32, float64 for float64 logits.

    Raises:
        ValueError: shapes, lengths or labels do not fit, more labels than frames in the
            modified topology, an unknown topology or backend.
        ImportError: "k2" is forced and cannot be imported.
    """
    lattice = (labels, logit_lengths, label_lengths, blank, ranges, topology, backend)
    return arcs_of(logits, *lattice).total()


@torch.no_grad()
def occupancy(
    logits: Logits,
    labels: Tensor,
    logit_lengths: Tensor,
    label_lengths: Tensor,
    *,
    blank: int = 0,
    ranges: Tensor | None = None,
    topology: str = "regular",
    backend: str | None = None,
) -> Tensor:
    """Posterior that an alignment of ``labels`` leaves a node by blank, by its label.

    Arguments and errors as `total_score`. No gradient.

    Returns:
        (B, T, U+1, 2): [..., 0] blank, [..., 1] label; zero where there is no arc. The
        labels of each row u < U_b sum to 1, the blanks of an utterance to T_b (to
        T_b - U_b in the modified topology).
    """
    lattice = (labels, logit_lengths, label_lengths, blank, ranges, topology, backend)
    arcs = arcs_of(logits, *lattice)
    _, *use = arcs.forward_backward()
    return torch.stack(use, dim=-1).to(arcs.blank.dtype)
