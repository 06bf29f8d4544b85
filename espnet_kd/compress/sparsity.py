"""The weights of a model that can be pruned, and the least important ones.

Weights are viewed as rows: (outputs, inputs), of a convolution (outputs, inputs x
kernel). Weights are pruned in units: a weight, a block of weights, or the two smallest
of four neighbours in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_kd.config.checks import block_sides

PROJECTIONS = "kd_projections."  # of hidden-layer KD; not part of the saved student
# Layers that multiply by a weight.
MULTIPLYING = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.modules.rnn.RNNCellBase,
)


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear, convolutional and recurrent layers, by name.

    Biases, norms and embeddings, even if tied to an output layer, are not included.
    """
    modules = list(model.modules())
    embeddings = {id(m.weight) for m in modules if isinstance(m, nn.Embedding)}
    weights = {
        id(parameter)
        for module in modules
        if isinstance(module, MULTIPLYING)
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("weight") and name != "weight_g"  # a norm, of weight_norm
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in weights - embeddings and not name.startswith(PROJECTIONS)
    }


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask (N,) of the `count` lowest of scores (N,), the first ones among equals."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    below = scores < threshold
    equal = scores == threshold
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


@dataclass(frozen=True)
class Blocks:
    """Units of `height` x `width` weights; those at an edge may be smaller.

    A block's score is the mean magnitude of its weights. 1 x 1 is unstructured.
    """

    height: int
    width: int
    most = 1.0  # sparsity with every unit pruned

    def takes(self, shape: torch.Size) -> bool:
        """Whether a weight of this shape can be pruned with this pattern."""
        return True

    def scores(self, weight: Tensor) -> Tensor:
        """Importance of each unit, (units,)."""
        magnitude = _rows(weight).abs()
        return (self._sums(magnitude) / self._sums(torch.ones_like(magnitude))).ravel()

    def mask(self, weight: Tensor, units: Tensor) -> Tensor:
        """Mask of the weights whose units (units,) are True; shape of `weight`."""
        height, width = _rows(weight).shape
        blocks = units.view(-(-height // self.height), -1)
        spread = blocks.repeat_interleave(self.height, 0)
        spread = spread.repeat_interleave(self.width, 1)
        return spread[:height, :width].reshape(weight.shape)

    def _sums(self, rows: Tensor) -> Tensor:
        missing = (-rows.size(0) % self.height, -rows.size(1) % self.width)
        padded = nn.functional.pad(rows, (0, missing[1], 0, missing[0]))
        blocks = padded.unflatten(1, (-1, self.width)).unflatten(0, (-1, self.height))
        return blocks.sum((1, 3))


@dataclass(frozen=True)
class TwoOfFour:
    """2:4 sparsity: units are the two smallest of each four neighbours in a row.

    Sparse tensor cores can multiply a weight if all of its units are pruned.
    """

    most = 0.5

    def takes(self, shape: torch.Size) -> bool:
        """Whether the row length is a multiple of four."""
        return len(shape) > 1 and shape[1:].numel() % 4 == 0

    def scores(self, weight: Tensor) -> Tensor:
        """Magnitude lost with each unit, (units,)."""
        groups = weight.abs().reshape(-1, 4)
        return groups.gather(1, _two_smallest(groups)).sum(1)

    def mask(self, weight: Tensor, units: Tensor) -> Tensor:
        """Mask of the weights whose units (units,) are True; shape of `weight`."""
        groups = weight.abs().reshape(-1, 4)
        pruned = torch.zeros_like(groups, dtype=torch.bool)
        pruned.scatter_(1, _two_smallest(groups), units.unsqueeze(1).expand(-1, 2))
        return pruned.view(weight.shape)


def parse_pattern(pattern: str) -> Blocks | TwoOfFour:
    """`unstructured`, `2:4` or a block such as `1x16` (outputs x inputs).

    Raises:
        ValueError: none of these.
    """
    sides = block_sides(pattern)
    return TwoOfFour() if sides is None else Blocks(*sides)


def _rows(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.dim() > 1 else weight.reshape(1, -1)


def _two_smallest(groups: Tensor) -> Tensor:
    """Indices (N, 2) in groups (N, 4), the first ones among equals."""
    return groups.sort(dim=1, stable=True).indices[:, :2]
