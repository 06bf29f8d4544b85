"""Reading a lattice node by node: what the losses need of each, and no more.

A loss over {some classes, rest}, be it the transducer loss ({label, blank}), collapsed
or top-k KD, needs of the V logits of a node only those of its classes and the
log-sum-exp of all others. A loss over all classes needs one number, its KL. So the
nodes are read in chunks, reduced to these numbers, and forgotten; the backward pass
reads them once more. No tensor of B * T * (U+1) * V elements is made, and nodes of the
padding, or without a gradient, cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_kd.lattice import triton_kernels
from espnet_kd.lattice.factored import (
    FactoredRows,
    Logits,
    Nodes,
    RowReader,
    reader_of,
    tensors_of,
)
from espnet_kd.lattice.nodes import LOG_ZERO

# Numbers in the working memory of a chunk: 16 MB of float32 stay in a CPU's last cache.
# A GPU wants larger matrix products.
CHUNK = {"cpu": 2**22, "cuda": 2**26}


class Target(NamedTuple):
    """A posterior over all classes with which nodes are compared."""

    log_probs: Callable[[Nodes], Tensor]  # of n nodes, (n, V)
    temperature: float  # divides the logits that are compared with it


class Reading(NamedTuple):
    """What was read of N nodes."""

    scores: Tensor  # (N, K) logits of the kept classes, up to a constant a node
    rest: Tensor  # (N, R) logsumexp(logits / temperature) of all others, same constant
    divergence: Tensor  # (N, D) KL from each target, at its temperature


def chunks(
    nodes: Nodes, width: int, device: torch.device
) -> Iterator[tuple[slice, Nodes]]:
    """Runs of nodes that fit the working memory, ``width`` numbers each; at least 1."""
    size = max(64, CHUNK.get(device.type, CHUNK["cpu"]) // width)
    for start in range(0, max(1, nodes.total), size):
        part = slice(start, min(start + size, nodes.total))
        yield part, nodes.take(part)


def read_nodes(
    logits: Logits,
    nodes: Nodes,
    ids: Tensor | None = None,
    temperatures: Sequence[float] = (),
    targets: Sequence[Target] = (),
    tolerance: float = 0.0,
) -> Reading:
    """Read nodes of a lattice, once forward and once backward.

    Differentiable once. Computed in float32, or float64 where the logits are, under
    autocast too.

    Args:
        logits: (B, T, U+1, V), dense or factored.
        nodes: N nodes; a node may be named twice.
        ids: (N, K) classes to keep; a class may be named twice in a row.
        temperatures: for which the rest is summed.
        targets: posteriors to compare with.
        tolerance: the backward pass leaves out nodes whose largest gradient is below
            this fraction of the largest of all; 0 leaves out those without any.
    """
    if ids is None:
        ids = nodes.row.new_empty(nodes.total, 0)
    request = _Request(logits, nodes, ids, temperatures, targets, tolerance)
    return Reading(*_Read.apply(request, *tensors_of(logits)))


class _Request(NamedTuple):
    logits: Logits
    nodes: Nodes
    ids: Tensor
    temperatures: Sequence[float]
    targets: Sequence[Target]
    tolerance: float

    def chunks(self, nodes: Nodes, reader: RowReader) -> Iterator[tuple[slice, Nodes]]:
        copies = len(self.temperatures) + 3 * len(self.targets)
        return chunks(nodes, reader.width * max(1, copies), nodes.row.device)

    def is_fused(self, reader: RowReader) -> bool:
        """Whether the kernels for CUDA do what is asked; torch does everything."""
        return (
            isinstance(reader, FactoredRows)
            and not self.targets
            and list(self.temperatures) == [1]
            and triton_kernels.usable(
                self.nodes.row.device, reader.dtype, self.ids.shape[1]
            )
        )

    def logits_of(self, nodes: Nodes, reader: RowReader) -> Tensor:
        """Logits (n, V) of a chunk, up to a constant for each node.

        The largest becomes 0 where a temperature divides: a low one would overflow it.
        """
        logits = reader.read(nodes)
        divisors = {
            *self.temperatures,
            *(target.temperature for target in self.targets),
        }
        if divisors <= {1}:
            return logits
        return logits.sub_(logits.amax(1, keepdim=True).clamp(min=LOG_ZERO))


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, request: _Request, *tensors: Tensor):
        ctx.request = request
        reader = reader_of(request.logits)
        like = tensors[0].new_empty(0, dtype=reader.dtype)
        count = request.nodes.total
        out = Reading(
            like.new_empty(count, request.ids.shape[1]),
            like.new_empty(count, len(request.temperatures)),
            like.new_empty(count, len(request.targets)),
        )
        with torch.autocast(like.device.type, enabled=False):
            if request.is_fused(reader):
                _read_fused(reader, request, out)
            else:
                for part, nodes in request.chunks(request.nodes, reader):
                    _read(request.logits_of(nodes, reader), request, part, nodes, out)
        ctx.save_for_backward(out.rest)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        request, (rest,) = ctx.request, ctx.saved_tensors
        nodes, ids = request.nodes, request.ids
        keep = _nodes_with_gradient(gradients, request.tolerance)
        if keep is not None:
            nodes, ids, rest = nodes.take(keep), ids[keep], rest[keep]
            gradients = tuple(x[keep] for x in gradients)
        reader = reader_of(request.logits)
        reader.start_gradient()
        with torch.autocast(rest.device.type, enabled=False):
            for part, some in request.chunks(nodes, reader):
                logits = request.logits_of(some, reader)
                given = Reading(*(x[part] for x in gradients))
                if request.is_fused(reader):
                    triton_kernels.rest_gradient_(
                        logits, ids[part], rest[part, 0], given.rest[:, 0], given.scores
                    )
                else:
                    logits = _gradient(
                        logits, request, some, ids[part], rest[part], given
                    )
                reader.add_gradient(some, logits)
        return None, *reader.gradients()


def _read_fused(reader: FactoredRows, request: _Request, out: Reading) -> None:
    """All nodes, without a logit in memory."""
    for part, nodes in chunks(request.nodes, 2 * reader.joint, request.ids.device):
        out.scores[part], out.rest[part, 0] = triton_kernels.linear_scores(
            reader.hidden(nodes), reader.weight, reader.bias, request.ids[part]
        )


def _read(
    logits: Tensor, request: _Request, part: slice, nodes: Nodes, out: Reading
) -> None:
    """One chunk; overwrites its logits (n, V)."""
    ids = request.ids[part]
    torch.gather(logits, 1, ids, out=out.scores[part])
    for column, target in enumerate(request.targets):
        log_q = target.log_probs(nodes).clamp(min=LOG_ZERO)
        log_p = (logits / target.temperature).log_softmax(1).clamp(min=LOG_ZERO)
        out.divergence[part, column] = (log_q.exp() * (log_q - log_p)).sum(1)
    if request.temperatures:
        logits.scatter_(1, ids, -torch.inf)
    for column, _, scaled in _by_temperature(logits, request.temperatures):
        top = scaled.amax(1, keepdim=True).clamp(min=LOG_ZERO)
        sums = scaled.sub_(top).exp_().sum(1)
        out.rest[part, column] = sums.log_().add_(top.squeeze(1))


def _gradient(
    logits: Tensor,
    request: _Request,
    nodes: Nodes,
    ids: Tensor,
    rest: Tensor,
    gradients: Reading,
) -> Tensor:
    """Gradient (n, V) to the logits of one chunk, which it overwrites."""
    parts = []
    for target, gradient in zip(request.targets, gradients.divergence.unbind(1)):
        part = (logits / target.temperature).softmax(1)
        part.sub_(target.log_probs(nodes).exp())
        parts.append(part.mul_((gradient / target.temperature).unsqueeze(1)))
    rest = rest.clamp(min=LOG_ZERO)
    sums = None
    for column, temperature, scaled in _by_temperature(logits, request.temperatures):
        share = scaled.sub_(rest[:, column, None]).exp_()
        share.mul_(gradients.rest[:, column, None] / temperature)
        sums = share if sums is None else sums.add_(share)
    if sums is None:
        sums = logits.zero_()
    # Classes that are kept are no part of the rest; one named twice takes both.
    sums.scatter_(1, ids, 0.0).scatter_add_(1, ids, gradients.scores)
    for part in parts:
        sums.add_(part)
    return sums


def _by_temperature(
    logits: Tensor, temperatures: Sequence[float]
) -> Iterator[tuple[int, float, Tensor]]:
    """Column, temperature, and logits / temperature to overwrite; the last in place."""
    for column, temperature in enumerate(temperatures):
        is_last = column + 1 == len(temperatures)
        scaled = logits if is_last else logits.clone()
        yield column, temperature, (
            scaled if temperature == 1 else scaled.div_(temperature)
        )


def _nodes_with_gradient(
    gradients: Sequence[Tensor], tolerance: float
) -> Tensor | None:
    """Indices of the nodes that the backward pass visits; None for all."""
    largest = torch.cat([x.abs() for x in gradients], dim=1).amax(1)
    keep = largest > tolerance * largest.max() if len(largest) else largest > 0
    return None if keep.all() else keep.nonzero().squeeze(1)
