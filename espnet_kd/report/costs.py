"""Costs of a model, as plain data that needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# The input on which multiply-adds are counted.
SECONDS = 10  # of noise: attention over longer audio costs more per second
LABELS_PER_SECOND = 4  # approximately that of English in word pieces

SPARSE = 0.01  # share of zeros above which a model counts as sparse


@dataclass(frozen=True)
class ModelSize:
    """Attributes: parameters (trainable values), bytes (all floating point tensors)."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class MultiplyAdds:
    """Per second of audio: all, and those with non-zero weights."""

    dense: float
    nonzero: float


@dataclass(frozen=True)
class Layer:
    """One weight. `bytes` as stored, `compressed_bytes` without zeros."""

    name: str
    shape: list[int]
    zeros: int
    sparsity: float
    bytes: int
    compressed_bytes: int
    multiply_adds: MultiplyAdds | None

    @property
    def values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """Summary of a model file.

    Attributes:
        layers: the weights that can be pruned.
        sparsity: share of zeros in `layers`.
        bytes, compressed_bytes: of all floating point tensors; only `layers` are
            compressed.
        encoder, decoder: multiply-adds of the encoder and of everything after it; None
            for a model that was not run.
        products, other: the parts of these without a weight, and with a weight that is
            not in `layers`. `total` = encoder + decoder = layers + products + other.
    """

    layers: list[Layer]
    sparsity: float
    bytes: int
    compressed_bytes: int
    encoder: MultiplyAdds | None = None
    decoder: MultiplyAdds | None = None
    products: MultiplyAdds | None = None
    other: MultiplyAdds | None = None
    total: MultiplyAdds | None = None

    @property
    def is_sparse(self) -> bool:
        return self.sparsity > SPARSE


def total_of(costs: Iterable[MultiplyAdds | None]) -> MultiplyAdds | None:
    """Their sum; None if one is unknown."""
    costs = list(costs)
    if None in costs:
        return None
    return MultiplyAdds(sum(c.dense for c in costs), sum(c.nonzero for c in costs))
