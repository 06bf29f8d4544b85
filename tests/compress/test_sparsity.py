"""Weights that may be pruned, and the lowest units, against naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espnet_kd.compress.sparsity import lowest, parse_pattern, prunable_weights

# ------------------------------------------------------------------------- oracle


def naive_units(weight: np.ndarray, pattern: str) -> list[tuple[float, list[int]]]:
    """Score and flat positions of each unit of a weight (outputs, ...), row by row."""
    rows = weight.reshape(len(weight), -1) if weight.ndim > 1 else weight[None]
    height, width = rows.shape
    at = np.arange(rows.size).reshape(rows.shape)
    units = []
    if pattern == "2:4":
        for row in range(height):
            for first in range(0, width, 4):
                group = sorted(
                    range(first, first + 4), key=lambda k: (abs(rows[row, k]), k)
                )
                lost = sum(abs(rows[row, k]) for k in group[:2])
                units.append((lost, [int(at[row, k]) for k in group[:2]]))
        return units
    sides = (1, 1) if pattern == "unstructured" else map(int, pattern.split("x"))
    tall, wide = sides
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            cells = [
                (row, column)
                for row in range(top, min(top + tall, height))
                for column in range(left, min(left + wide, width))
            ]
            mean = sum(abs(rows[cell]) for cell in cells) / len(cells)
            units.append((mean, [int(at[cell]) for cell in cells]))
    return units


def naive_masks(
    weights: dict[str, np.ndarray],
    sparsity: float,
    pattern: str = "unstructured",
    ranking: str = "layer",
) -> dict[str, np.ndarray]:
    """Pruned units: the round-half-up(share * units) lowest, first among equals."""
    share = sparsity / (0.5 if pattern == "2:4" else 1.0)
    masks = {name: np.zeros(weight.size, bool) for name, weight in weights.items()}
    units = [
        (score, name, cells)
        for name, weight in weights.items()
        for score, cells in naive_units(weight.astype(np.float64), pattern)
    ]
    groups = [units]
    if ranking == "layer":
        groups = [[unit for unit in units if unit[1] == name] for name in weights]
    for group in groups:
        count = math.floor(share * len(group) + 0.5)
        order = sorted(range(len(group)), key=lambda n: (group[n][0], n))
        for n in order[:count]:
            masks[group[n][1]][group[n][2]] = True
    return {name: masks[name].reshape(weights[name].shape) for name in weights}


def whole_numbers(shape: tuple[int, ...], most: int, seed: int = 0) -> Tensor:
    """Signed whole numbers, whose sums are exact; a small `most` makes many ties."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, most, shape) * rng.choice([-1, 1], shape)
    return torch.tensor(values, dtype=torch.float32)


# --------------------------------------------------------------------- the lowest


@pytest.mark.parametrize("count", range(8))
def test_the_lowest_and_the_first_among_equals(count: int):
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0, 3.0, 2.0, 1.0])
    order = [1, 3, 6, 2, 5, 0, 4]
    expected = [n in order[:count] for n in range(7)]
    assert lowest(scores, count).tolist() == expected


def test_the_lowest_of_equal_scores():
    assert lowest(torch.zeros(5), 3).tolist() == [True, True, True, False, False]


# ------------------------------------------------------------------------ patterns

SHAPES = [
    (8, 32),
    (17, 33),
    (5, 7),
    (16, 16),
    (1, 40),
    (40, 1),
    (12, 3, 3),
    (6, 4, 3, 3),
]
BLOCKS = ["unstructured", "1x16", "16x1", "2x3", "4x4", "3x5", "64x64", "8x1"]


def pruned(weight: Tensor, pattern: str, count: int) -> Tensor:
    units = parse_pattern(pattern)
    return units.mask(weight, lowest(units.scores(weight), count))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", BLOCKS)
@pytest.mark.parametrize("most", [4, 10000])
def test_blocks(shape: tuple[int, ...], pattern: str, most: int):
    """Also if the sides do not divide the shape, and with ties."""
    weight = whole_numbers(shape, most)
    units = naive_units(weight.numpy().astype(np.float64), pattern)
    scores = parse_pattern(pattern).scores(weight)
    assert scores.shape == (len(units),)
    np.testing.assert_allclose(scores, [score for score, _ in units], rtol=1e-6)
    assert parse_pattern(pattern).takes(weight.shape)
    for share in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        count = math.floor(share * len(units) + 0.5)
        expected = naive_masks({"w": weight.numpy()}, share, pattern)["w"]
        mask = pruned(weight, pattern, count)
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert np.array_equal(mask.numpy(), expected), share


@pytest.mark.parametrize("shape", [(3, 4), (7, 12), (6, 4, 3), (5, 2, 2, 3)])
@pytest.mark.parametrize("most", [3, 10000])
def test_two_of_four(shape: tuple[int, ...], most: int):
    weight = whole_numbers(shape, most)
    units = naive_units(weight.numpy().astype(np.float64), "2:4")
    pattern = parse_pattern("2:4")
    assert pattern.takes(weight.shape)
    np.testing.assert_array_equal(pattern.scores(weight), [score for score, _ in units])
    for sparsity in (0.0, 0.13, 0.25, 0.4, 0.5):
        expected = naive_masks({"w": weight.numpy()}, sparsity, "2:4")["w"]
        mask = pruned(weight, "2:4", math.floor(sparsity / 0.5 * len(units) + 0.5))
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert np.array_equal(mask.numpy(), expected), sparsity
    left = (~mask).reshape(-1, 4).sum(1)
    assert (left == 2).all()


@pytest.mark.parametrize("values", [[1, 1, 1, 1], [0, 0, 0, 0], [2, 1, 1, 1]])
def test_two_of_four_takes_the_first_among_equals(values: list[float]):
    weight = torch.tensor([values], dtype=torch.float32)
    expected = naive_masks({"w": weight.numpy()}, 0.5, "2:4")["w"]
    assert np.array_equal(pruned(weight, "2:4", 1).numpy(), expected)


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2), (4,), (8,), ()])
def test_two_of_four_needs_whole_groups(shape: tuple[int, ...]):
    assert not parse_pattern("2:4").takes(torch.Size(shape))


@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "2x2", "2:4"])
def test_weights_that_are_a_view(pattern: str):
    """Views of a transposed matrix: memory is not in row order."""
    weight = whole_numbers((12, 8), 10000).t()
    assert not weight.is_contiguous()
    expected = naive_masks({"w": weight.numpy()}, 0.5, pattern)["w"]
    units = parse_pattern(pattern)
    count = math.floor(0.5 / units.most * len(units.scores(weight)) + 0.5)
    assert np.array_equal(pruned(weight, pattern, count).numpy(), expected)


def test_biases_and_numbers_are_one_row():
    bias = torch.tensor([4.0, -1.0, 2.0])
    assert pruned(bias, "unstructured", 2).tolist() == [False, True, True]
    assert pruned(bias, "1x2", 1).tolist() == [False, False, True]
    scale = torch.tensor(1.0)  # for example of ESPnet's scaled positions
    assert pruned(scale, "unstructured", 1).tolist() is True


@pytest.mark.parametrize(
    "pattern",
    ["none", "", "4:8", "1:4", "16", "0x4", "4x0", "-1x4", "1x", "x1", "1X16"],
)
def test_an_invalid_pattern(pattern: str):
    message = "pattern: .* is not one of unstructured, 2:4 .* block of outputs x inputs"
    with pytest.raises(ValueError, match=message):
        parse_pattern(pattern)


@pytest.mark.parametrize("pattern", [124, 2.4, None, True, [1, 16], {"1": 16}])
def test_a_pattern_that_is_not_text(pattern):
    """YAML reads 2:4 without quotes as 124."""
    with pytest.raises(ValueError, match="pattern: .* 2:4 .in quotes. "):
        parse_pattern(pattern)


# ---------------------------------------------------------------- which parameters


class Zoo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.conv1d = nn.Conv1d(4, 4, 3, groups=4)
        self.conv2d = nn.Conv2d(1, 2, 3)
        self.lstm = nn.LSTM(4, 4, num_layers=2, bidirectional=True)
        self.projected = nn.LSTM(4, 4, proj_size=2)
        self.gru = nn.GRU(4, 4)
        self.rnn = nn.RNN(4, 4)
        self.cells = nn.ModuleList([nn.LSTMCell(4, 4), nn.GRUCell(4, 4)])
        self.norms = nn.ModuleList(
            [nn.LayerNorm(4), nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)]
        )
        self.embedding = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.ones(2, 4))
        self.kd_projections = nn.ModuleList([nn.Linear(4, 6)])


def test_weights_of_linear_convolutional_and_recurrent_layers():
    both = [f"weight_{part}_l0" for part in ("ih", "hh")]
    lstm = [
        f"weight_{part}_l{layer}{side}"
        for layer in (0, 1)
        for side in ("", "_reverse")
        for part in ("ih", "hh")
    ]
    expected = ["linear.weight", "conv1d.weight", "conv2d.weight"]
    expected += [f"lstm.{name}" for name in lstm]
    expected += [f"projected.{name}" for name in [*both, "weight_hr_l0"]]
    expected += [f"{layer}.{name}" for layer in ("gru", "rnn") for name in both]
    expected += [f"cells.{n}.weight_{part}" for n in (0, 1) for part in ("ih", "hh")]
    model = Zoo()
    weights = prunable_weights(model)
    assert list(weights) == expected
    for name, weight in weights.items():
        assert weight is model.get_parameter(name)


@pytest.mark.parametrize("embedding_first", [True, False])
def test_tied_embeddings_are_left(embedding_first: bool):
    layers = dict(
        embed=nn.Embedding(6, 4), output=nn.Linear(4, 6), other=nn.Linear(4, 4)
    )
    layers["output"].weight = layers["embed"].weight
    names = ["embed", "output", "other"]
    if not embedding_first:
        names = names[::-1]
    model = nn.ModuleDict({name: layers[name] for name in names})
    assert list(prunable_weights(model)) == ["other.weight"]


def test_a_weight_that_two_layers_share_is_one():
    model = nn.ModuleDict(dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    model["b"].weight = model["a"].weight
    assert list(prunable_weights(model)) == ["a.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_norm_of_a_normalised_weight_is_not_pruned():
    """`weight_g` holds lengths of rows, `weight_v` their directions."""
    model = nn.ModuleDict(dict(conv=nn.utils.weight_norm(nn.Conv1d(4, 4, 3))))
    assert "conv.weight_g" not in prunable_weights(model)
