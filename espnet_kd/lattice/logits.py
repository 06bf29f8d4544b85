"""Logits of a transducer lattice, written out or as the factors of its joint network.

The joint network of ESPnet (and of most transducers) is

    logits[b,t,u] = weight @ activation(encoder[b,t] + decoder[b,u]) + bias

so that B * (T + U+1) * J numbers and one (V, J) matrix hold what B * T * (U+1) * V do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
}


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
            that neither works in place nor has parameters (such as ESPnet's).
        is_half: the tensors had half precision; see `rows.FactoredRows`.

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
                f"activation: {self.activation!r} is not one of {sorted(ACTIVATIONS)}; "
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
        """Itself: it is never read in less than float32."""
        return self

    def upcast(self) -> FactoredLogits:
        """The same in float32, or in float64 if one of the tensors is."""
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
    """The tensors of a lattice, which receive its gradients."""
    return logits.tensors if isinstance(logits, FactoredLogits) else (logits,)


def precision_of(*tensors: Tensor | None) -> torch.dtype:
    """float64 if one of the tensors is, else float32."""
    is_double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if is_double else torch.float32
