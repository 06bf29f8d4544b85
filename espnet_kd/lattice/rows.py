"""Reads the logits of some nodes of a lattice at a time, and collects their gradients.

A dense lattice gives its rows as they are; a factored one computes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

import torch
from torch import Tensor

from espnet_kd.lattice.logits import FactoredLogits, Logits, precision_of
from espnet_kd.lattice.nodes import Nodes


class DenseRows:
    """Reads nodes of a dense (B, T, U+1, V) tensor."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.dtype = precision_of(logits)
        self.width = logits.shape[-1]  # numbers that a node takes while it is read
        self.has_tf32 = False

    def release(self) -> None:
        """Nothing to free."""

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
        """Free the memory of the chunk."""
        self.buffer = self.weight.new_empty(0)

    def read(self, nodes: Nodes) -> Tensor:
        """Logits (n, V), which the caller may and the next call does overwrite."""
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
    """The attribute of torch.backends.cuda.matmul that enables TF32, and its value.

    torch 2.9 renamed it, and refuses a mix of both names.
    """
    try:
        _ = torch.backends.cuda.matmul.fp32_precision
    except (AttributeError, AssertionError):
        return "allow_tf32", True
    return "fp32_precision", "tf32"


@contextmanager
def full_precision(reader: RowReader, device: torch.device) -> Iterator[None]:
    """No autocast; TF32 products where the reader uses them."""
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
