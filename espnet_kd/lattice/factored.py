"""Logits of a transducer lattice, written out or as the factors of its joint network.

The joint network of ESPnet (and of most transducers) is

    logits[b,t,u] = weight @ activation(encoder[b,t] + decoder[b,u]) + bias

so that B * (T + U+1) * J numbers and one (V, J) matrix say what B * T * (U+1) * V do.
A `RowReader` gives the logits of some nodes at a time, and takes their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Union

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


class Nodes(NamedTuple):
    """N nodes of a batch of lattices, each (N,) int64: b, t and u."""

    utterance: Tensor
    frame: Tensor
    row: Tensor

    def take(self, index: Tensor | slice) -> Nodes:
        """Some of the nodes."""
        return Nodes(*(x[index] for x in self))

    def later(self, shift: int) -> Nodes:
        """The same rows, ``shift`` frames later."""
        return Nodes(self.utterance, self.frame + shift, self.row)

    @property
    def total(self) -> int:
        """N."""
        return len(self.utterance)


def nodes_of(mask: Tensor) -> Nodes:
    """The nodes where ``mask`` (B, T, U+1) is true, in the order of frames."""
    return Nodes(*mask.nonzero(as_tuple=True))


@dataclass(frozen=True, eq=False)
class FactoredLogits:
    """A lattice's logits (B, T, U+1, V) that are never written out.

    Every function that takes a lattice takes one of these in place of a dense tensor,
    with the same value and the same gradients to its tensors.

    Attributes:
        encoder: (B, T, J), projected to the joint network's width.
        decoder: (B, U+1, J), likewise.
        weight: (V, J) of the output layer.
        bias: (V,), or None.
        activation: "tanh", "relu", "identity", or any elementwise function of a tensor
            that neither works in place nor has parameters (a module of ESPnet's, say).
        is_half: the tensors were of half precision; see `FactoredRows`.

    Raises:
        ValueError: shapes do not fit, an unknown activation, or one with parameters.
    """

    encoder: Tensor
    decoder: Tensor
    weight: Tensor
    bias: Tensor | None = None
    activation: str | Callable[[Tensor], Tensor] = "tanh"
    is_half: bool = False

    def __post_init__(self) -> None:
        encoder, decoder, weight = self.encoder, self.decoder, self.weight
        fits = encoder.dim() == decoder.dim() == 3 and weight.dim() == 2
        fits = fits and encoder.shape[::2] == decoder.shape[::2]
        fits = fits and weight.shape[1] == encoder.shape[2]
        if self.bias is not None:
            fits = fits and self.bias.shape == weight.shape[:1]
        if not fits:
            shapes = [None if x is None else tuple(x.shape) for x in self.tensors]
            raise ValueError(
                f"encoder, decoder, weight, bias: shapes {shapes} do not fit, expected "
                "(B, T, J), (B, U+1, J), (V, J), (V,)"
            )
        if any(True for _ in getattr(self.activation, "parameters", tuple)()):
            raise ValueError(
                f"activation: {self.activation} has parameters, which would get no "
                "gradient; pass dense logits"
            )
        if isinstance(self.activation, str) and self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: {self.activation!r} is none of {sorted(ACTIVATIONS)}; "
                "pass the function itself"
            )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.encoder, self.decoder, self.weight, self.bias

    @property
    def shape(self) -> torch.Size:
        (batch, frames, _), rows = self.encoder.shape, self.decoder.shape[1]
        return torch.Size((batch, frames, rows, len(self.weight)))

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def dim(self) -> int:
        return 4

    def float(self) -> FactoredLogits:
        """Itself: what is read of it is never less than float32."""
        return self

    def upcast(self) -> FactoredLogits:
        """With tensors of float32, or of float64 where one of them is."""
        dtype = precision_of(*self.tensors)
        tensors = (None if x is None else x.to(dtype) for x in self.tensors)
        is_half = any(x is not None and x.dtype in HALF for x in self.tensors)
        return FactoredLogits(*tensors, self.activation, self.is_half or is_half)

    def activate(self, x: Tensor) -> Tensor:
        act = self.activation
        return ACTIVATIONS[act](x) if isinstance(act, str) else act(x)

    def dense(self) -> Tensor:
        """(B, T, U+1, V), for tests and small lattices."""
        hidden = self.activate(self.encoder.unsqueeze(2) + self.decoder.unsqueeze(1))
        return torch.nn.functional.linear(hidden, self.weight, self.bias)


Logits = Union[Tensor, FactoredLogits]


def tensors_of(logits: Logits) -> tuple[Tensor | None, ...]:
    """What a lattice is made of, and what its gradients go to."""
    return logits.tensors if isinstance(logits, FactoredLogits) else (logits,)


def precision_of(*tensors: Tensor | None) -> torch.dtype:
    """float64 where one of the tensors is, else float32."""
    is_double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if is_double else torch.float32


class DenseRows:
    """Reads nodes of a dense (B, T, U+1, V) tensor."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.dtype = precision_of(logits)
        self.width = logits.shape[-1]  # numbers that a node takes while it is read
        self.has_tf32 = False

    def release(self) -> None:
        """There is nothing to give up."""

    def read(self, nodes: Nodes) -> Tensor:
        """Logits (n, V) that the caller may overwrite."""
        return self.logits[nodes.utterance, nodes.frame, nodes.row].to(self.dtype)

    def start_gradient(self) -> None:
        self.gradient = torch.zeros_like(
            self.logits, memory_format=torch.contiguous_format
        )

    def add_gradient(self, nodes: Nodes, gradient: Tensor) -> None:
        """Adds (n, V), of the nodes read last."""
        _, frames, rows, classes = self.logits.shape
        index = (nodes.utterance * frames + nodes.frame) * rows + nodes.row
        gradient = gradient.to(self.logits.dtype)
        self.gradient.view(-1, classes).index_add_(0, index, gradient)

    def gradients(self) -> tuple[Tensor]:
        return (self.gradient,)


class FactoredRows:
    """Reads nodes of a joint network; one buffer holds the logits of a chunk.

    On CUDA the products of half-precision factors (AMP) are made in TF32: its mantissa
    is as long as that of float16, and float32 products cost several times as much.
    """

    def __init__(self, logits: FactoredLogits) -> None:
        self.given = [None if x is None else x.dtype for x in logits.tensors]
        logits = logits.upcast()
        self.has_tf32 = logits.device.type == "cuda" and logits.is_half
        encoder, decoder, weight, bias = (
            None if x is None else x.detach() for x in logits.tensors
        )
        self.dtype = weight.dtype
        self.shapes = encoder.shape, decoder.shape
        self.encoder, self.decoder = encoder.flatten(0, 1), decoder.flatten(0, 1)
        self.weight, self.bias = weight, bias
        self.activate = logits.activate
        self.joint = weight.shape[1]
        self.width = len(weight) + 2 * self.joint
        self.release()

    def _indices(self, nodes: Nodes) -> tuple[Tensor, Tensor]:
        (_, frames, _), (_, rows, _) = self.shapes
        return (
            nodes.utterance * frames + nodes.frame,
            nodes.utterance * rows + nodes.row,
        )

    def hidden(self, nodes: Nodes) -> Tensor:
        """Activated hidden layer (n, J), differentiable by `add_gradient`."""
        t, u = self._indices(nodes)
        self.inputs = self.encoder.index_select(0, t).add_(
            self.decoder.index_select(0, u)
        )
        if not self.wants_gradient:
            return self.activate(self.inputs)
        with torch.enable_grad():
            self.outputs = self.activate(self.inputs.requires_grad_())
        return self.outputs.detach()

    wants_gradient = False

    def release(self) -> None:
        """Give up the memory of the chunk."""
        self.buffer = self.weight.new_empty(0)

    def read(self, nodes: Nodes) -> Tensor:
        """Logits (n, V) that the caller may overwrite, and the next call does."""
        hidden = self.hidden(nodes)
        size = len(hidden) * len(self.weight)
        if self.buffer.numel() < size:
            self.buffer = self.weight.new_empty(size)
        out = self.buffer[:size].view(len(hidden), len(self.weight))
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=out)
        return torch.addmm(self.bias, hidden, self.weight.t(), out=out)

    def start_gradient(self) -> None:
        self.wants_gradient = True
        self.sums = [torch.zeros_like(x) for x in (self.encoder, self.decoder)]
        self.weight_sum = torch.zeros_like(self.weight)
        self.bias_sum = None if self.bias is None else torch.zeros_like(self.bias)

    def add_gradient(self, nodes: Nodes, gradient: Tensor) -> None:
        """Adds (n, V), of the nodes read last."""
        hidden = self.outputs.detach()
        self.weight_sum.addmm_(gradient.t(), hidden)
        if self.bias_sum is not None:
            self.bias_sum.add_(gradient.sum(0))
        (inputs,) = torch.autograd.grad(
            self.outputs, self.inputs, torch.mm(gradient, self.weight)
        )
        for index, total in zip(self._indices(nodes), self.sums):
            total.index_add_(0, index, inputs)

    def gradients(self) -> tuple[Tensor | None, ...]:
        encoder, decoder = (x.view(shape) for x, shape in zip(self.sums, self.shapes))
        sums = (encoder, decoder, self.weight_sum, self.bias_sum)
        return tuple(
            None if x is None else x.to(dtype) for x, dtype in zip(sums, self.given)
        )


RowReader = Union[DenseRows, FactoredRows]


def reader_of(logits: Logits) -> RowReader:
    """Reads any nodes of a lattice."""
    if isinstance(logits, FactoredLogits):
        return FactoredRows(logits)
    return DenseRows(logits.detach())


def tf32_setting() -> tuple[str, bool | str]:
    """What of torch.backends.cuda.matmul allows TF32 products, and by which value.

    torch 2.9 has another name for it, and does not want both to be used.
    """
    try:
        _ = torch.backends.cuda.matmul.fp32_precision
    except (AttributeError, AssertionError):
        return "allow_tf32", True
    return "fp32_precision", "tf32"


@contextmanager
def full_precision(reader: RowReader, device: torch.device) -> Iterator[None]:
    """No autocast; TF32 products where the reader takes them."""
    name, tf32 = tf32_setting()
    before = getattr(torch.backends.cuda.matmul, name)
    with torch.autocast(device.type, enabled=False):
        if reader.has_tf32:
            setattr(torch.backends.cuda.matmul, name, tf32)
        try:
            yield
        finally:
            if reader.has_tf32:
                setattr(torch.backends.cuda.matmul, name, before)
