"""Reading a lattice node by node: what the losses need of each, and no more.

A loss over {some classes, rest}, be it the transducer loss ({label, blank}), collapsed
or top-k KD, needs of the V logits of a node only those of its classes and the
log-sum-exp of all others. A loss over all classes needs one number, its divergence. So
the nodes are read in chunks, reduced to these numbers, and forgotten; the backward pass
reads them once more. No tensor of B * T * (U+1) * V elements is made, and nodes of the
padding, or without a gradient, cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_kd.lattice import triton_kernels
from espnet_kd.lattice.logits import FactoredLogits, Logits, tensors_of
from espnet_kd.lattice.masks import LOG_ZERO
from espnet_kd.lattice.nodes import Nodes
from espnet_kd.lattice.rows import FactoredRows, RowReader, full_precision, reader_of

# The working memory of a chunk in numbers, and its most nodes. Larger chunks do not
# speed up a CPU; a GPU needs larger matrix products.
CHUNK = {"cpu": 2**23, "cuda": 2**26}
NODES = {"cpu": 2**10, "cuda": 2**18}


class Divergence(Protocol):
    """Divergence of a lattice's posterior p from a target q: `losses.divergences`."""

    def formula(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        """Two (n, V) log-probabilities >= `LOG_ZERO` -> (n,)."""

    def gradient(self, log_q: Tensor, logits: Tensor) -> Tensor:
        """Of its value by the (n, V) logits of p, which are not modified."""


class Target(NamedTuple):
    """A posterior over all classes, to be compared with that of nodes."""

    log_probs: Callable[[Nodes], Tensor]  # of n nodes, (n, V)
    temperature: float  # divides the logits that are compared with it
    divergence: Divergence

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits at the temperature; unchanged where that is 1."""
        return logits if self.temperature == 1 else logits / self.temperature


class Reading(NamedTuple):
    """What was read of N nodes."""

    scores: Tensor  # (N, K) logits of the kept classes, up to a constant per node
    rest: Tensor  # (N, R) logsumexp(logits / temperature) of all others, same constant
    divergence: Tensor  # (N, D) from each target, at its temperature


def chunks(
    nodes: Nodes, width: int, device: torch.device
) -> Iterator[tuple[slice, Nodes]]:
    """Runs of nodes that fit the working memory, ``width`` numbers each; at least 1."""
    kind = device.type if device.type in CHUNK else "cpu"
    size = min(NODES[kind], max(64, CHUNK[kind] // width))
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
        nodes: N nodes; a node may occur twice.
        ids: (N, K) classes to keep; a class may occur twice in a row.
        temperatures: for which the rest is summed.
        targets: posteriors to compare with.
        tolerance: the backward pass leaves out nodes whose largest gradient is below
            this fraction of the largest of them; 0 leaves out those without any.
    """
    if ids is None:
        ids = nodes.row.new_empty(nodes.total, 0)
    request = _Request(temperatures, targets, tolerance)
    form = None
    if isinstance(logits, FactoredLogits):
        form = (logits.activation, logits.is_half)
    return Reading(*_Read.apply(request, form, nodes, ids, *tensors_of(logits)))


class _Request(NamedTuple):
    """What to read at the nodes; holds no tensor that autograd must see."""

    temperatures: Sequence[float]
    targets: Sequence[Target]
    tolerance: float

    def chunks(self, nodes: Nodes, reader: RowReader) -> Iterator[tuple[slice, Nodes]]:
        copies = len(self.temperatures) + 3 * len(self.targets)
        return chunks(nodes, reader.width * max(1, copies), nodes.row.device)

    def is_fused(self, reader: RowReader, ids: Tensor) -> bool:
        """Whether the CUDA kernels serve the request; torch serves any."""
        return (
            isinstance(reader, FactoredRows)
            and not self.targets
            and len(self.temperatures) == 1
            and triton_kernels.usable(ids.device, reader.dtype, ids.shape[1])
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
    def forward(ctx, request: _Request, form, nodes: Nodes, ids, *tensors):
        reader = reader_of(_lattice(tensors, form))
        like = tensors[0].new_empty(0, dtype=reader.dtype)
        count = nodes.total
        out = Reading(
            like.new_empty(count, ids.shape[1]),
            like.new_empty(count, len(request.temperatures)),
            like.new_empty(count, len(request.targets)),
        )
        with full_precision(reader, like.device):
            if request.is_fused(reader, ids):
                _read_fused(reader, request, nodes, ids, out)
            else:
                for part, some in request.chunks(nodes, reader):
                    logits = request.logits_of(some, reader)
                    _read(logits, request, some, ids[part], Reading(*_rows(out, part)))
        ctx.request, ctx.form = request, form
        ctx.save_for_backward(out.rest, ids, *nodes, *tensors)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):
        request, (rest, ids, *saved) = ctx.request, ctx.saved_tensors
        nodes, tensors = Nodes(*saved[:3]), saved[3:]
        keep = _nodes_with_gradient(gradients, request.tolerance)
        if keep is not None:
            nodes, ids, rest = nodes.take(keep), ids[keep], rest[keep]
            gradients = _rows(gradients, keep)
        reader = reader_of(_lattice(tensors, ctx.form))
        reader.start_gradient()
        with full_precision(reader, rest.device):
            is_fused = request.is_fused(reader, ids)
            for part, some in request.chunks(nodes, reader):
                given = Reading(*_rows(gradients, part))
                if is_fused:
                    logits = _gradient_fused(
                        reader.read(some), request, ids[part], rest[part], given
                    )
                else:
                    logits = request.logits_of(some, reader)
                    logits = _gradient(
                        logits, request, some, ids[part], rest[part], given
                    )
                reader.add_gradient(some, logits)
        return None, None, None, None, *reader.gradients()


def _lattice(tensors: Sequence[Tensor | None], form: tuple | None) -> Logits:
    """The lattice that `read_nodes` was given, from its tensors; None: a dense one."""
    return tensors[0] if form is None else FactoredLogits(*tensors, *form)


def _rows(tensors: Sequence[Tensor], index: slice | Tensor) -> tuple[Tensor, ...]:
    return tuple(x[index] for x in tensors)


def _read_fused(
    reader: FactoredRows, request: _Request, nodes: Nodes, ids: Tensor, out: Reading
) -> None:
    """All nodes, without logits in memory."""
    for part, some in chunks(nodes, 2 * reader.joint, ids.device):
        out.scores[part], out.rest[part, 0] = triton_kernels.linear_scores(
            reader.hidden(some),
            reader.weight,
            reader.bias,
            ids[part],
            1 / request.temperatures[0],
        )


def _gradient_fused(
    logits: Tensor, request: _Request, ids: Tensor, rest: Tensor, gradients: Reading
) -> Tensor:
    """Gradient (n, V) to the logits of one chunk, which it overwrites."""
    scale = 1 / request.temperatures[0]
    triton_kernels.rest_gradient_(
        logits, ids, rest[:, 0], gradients.rest[:, 0] * scale, gradients.scores, scale
    )
    return logits


def _read(
    logits: Tensor, request: _Request, nodes: Nodes, ids: Tensor, out: Reading
) -> None:
    """One chunk; overwrites its logits (n, V)."""
    torch.gather(logits, 1, ids, out=out.scores)
    for column, target in enumerate(request.targets):
        log_q = target.log_probs(nodes).clamp(min=LOG_ZERO)
        log_p = target.scaled(logits).log_softmax(1).clamp_(min=LOG_ZERO)
        out.divergence[:, column] = target.divergence.formula(log_q, log_p)
    if request.temperatures:
        logits.scatter_(1, ids, -torch.inf)
    for column, _, scaled in _by_temperature(logits, request.temperatures):
        top = scaled.amax(1, keepdim=True).clamp(min=LOG_ZERO)
        sums = scaled.sub_(top).exp_().sum(1)
        out.rest[:, column] = sums.log_().add_(top.squeeze(1))


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
        log_q = target.log_probs(nodes)
        part = target.divergence.gradient(log_q, target.scaled(logits))
        parts.append(part.mul_((gradient / target.temperature).unsqueeze(1)))
    rest = rest.clamp(min=LOG_ZERO)
    sums = None
    for column, temperature, scaled in _by_temperature(logits, request.temperatures):
        share = scaled.sub_(rest[:, column, None]).exp_()
        share.mul_(gradients.rest[:, column, None] / temperature)
        sums = share if sums is None else sums.add_(share)
    if sums is None:
        sums = logits.zero_()
    # Kept classes are not part of the rest; one that occurs twice gets both.
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
    most = largest.max() if len(largest) else largest.new_zeros(())
    # NaN gradients must pass this filter, so that AMP's overflow check sees them.
    keep = ~(largest <= tolerance * most)
    return None if keep.all() else keep.nonzero().squeeze(1)
