"""Sparsity, compressed sizes and tables of layers, computed by hand."""

import logging
import math
import os
import shutil
from collections import Counter

import pytest
import torch

from espnet_kd.compress.sparsity import prunable_weights
from espnet_kd.models.loading import load_model
from espnet_kd.report.layers import grouped, layer_table
from espnet_kd.report.operations import Counts, Operations, operations
from espnet_kd.report.size import read_tensors, size_of
from espnet_kd.report.weights import (
    Layer,
    MultiplyAdds,
    compressed_bytes,
    model_weights,
    stored_weights,
    weights_of,
)
from tests.tasks.recipe import RATE, Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return Recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def sparse(recipe):
    """A transducer: all of one layer, half of another, a quarter of a third is zero."""
    config, checkpoint = recipe.teacher("asr_transducer")
    folder = recipe.folder / "sparse"
    folder.mkdir()
    shutil.copy(config, folder / "config.yaml")
    state = torch.load(checkpoint)
    for name, share in ZEROED.items():
        flat = state[name].view(-1)
        flat[: int(share * len(flat))] = 0
    state["decoder.embed.weight"].zero_()  # neither pruned nor compressed
    torch.save(state, folder / "3best.pth")
    os.symlink("3best.pth", folder / "ave.pth")
    return folder / "ave.pth"


ZEROED = {
    "joint_network.lin_out.weight": 1.0,
    "decoder.rnn.0.weight_ih_l0": 0.5,
    "joint_network.lin_enc.weight": 0.25,
}


def row_of(table: str, name: str) -> list[str]:
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.split("\n")]
    (found,) = [line for line in lines if line and line[0] == name]
    return found


@pytest.mark.parametrize(
    "zeros, dtype, expected",
    [
        (0, torch.float32, 80),  # the bits would only add to it
        (1, torch.float32, 3 + 19 * 4),  # 20 bits are three bytes
        (10, torch.float32, 3 + 10 * 4),
        (20, torch.float32, 3),
        (10, torch.float16, 3 + 10 * 2),
    ],
)
def test_compressed_bytes(zeros, dtype, expected):
    tensor = torch.ones(4, 5, dtype=dtype)
    tensor.view(-1)[:zeros] = 0
    assert compressed_bytes(tensor) == expected


def test_two_of_four():
    tensor = torch.tensor([1.0, 0, 0, 2]).repeat(8, 2)
    assert compressed_bytes(tensor) == 64 // 8 + 32 * 4


def test_a_file_alone(tmp_path):
    weight = torch.tensor([[0.0, 1, 0], [2, 0, 0]])
    state = {
        "a.weight": weight,
        "a.bias": torch.zeros(3),
        "b.weight": torch.ones(2, 2),
        "tied.weight": weight,
        "frontend.logmel.melmat": torch.zeros(5, 5),
    }
    torch.save(state, tmp_path / "m.pth")
    found = stored_weights(read_tensors(tmp_path / "m.pth"))
    assert [layer.name for layer in found.layers] == ["a.weight", "b.weight"]
    assert found.layers[0] == Layer("a.weight", [2, 3], 4, 4 / 6, 24, 1 + 8, None)
    assert found.sparsity == 4 / 10 and found.is_sparse
    assert (
        found.bytes
        == (6 + 3 + 4 + 25) * 4
        == size_of(read_tensors(tmp_path / "m.pth")).bytes
    )
    assert found.compressed_bytes == found.bytes - 24 + 9
    assert found.total is None and model_weights(tmp_path / "m.pth") == found


def test_layers_are_those_that_are_pruned(recipe, sparse, caplog):
    found = model_weights(sparse)
    assert not caplog.records
    model = load_model(*recipe.teacher("asr_transducer"))
    prunable = prunable_weights(model)
    assert [layer.name for layer in found.layers] == list(prunable)
    zeros = {layer.name: layer.zeros for layer in found.layers if layer.zeros}
    expected = {name: int(s * prunable[name].numel()) for name, s in ZEROED.items()}
    assert zeros == expected
    values = sum(weight.numel() for weight in prunable.values())
    assert found.sparsity == pytest.approx(sum(expected.values()) / values)
    saved = sum(
        4 * zeros - math.ceil(prunable[name].numel() / 8)
        for name, zeros in expected.items()
    )
    assert found.compressed_bytes == size_of(read_tensors(sparse)).bytes - saved


def test_multiply_adds_leave_zeros_out(recipe, sparse):
    found = model_weights(sparse)
    model = load_model(*recipe.teacher("asr_transducer"))
    counts = operations(model, RATE)
    applied = {**counts.encoder.applied, **counts.decoder.applied}
    spared = 0.0
    for layer in found.layers:
        dense = applied.get(layer.name, 0) * layer.values
        kept = 1 - ZEROED.get(layer.name, 0)
        assert layer.multiply_adds.dense == pytest.approx(dense)
        assert layer.multiply_adds.nonzero == pytest.approx(dense * kept)
        spared += dense * (1 - kept)
    assert spared > 0
    assert found.total.dense - found.total.nonzero == pytest.approx(spared)
    assert found.encoder.dense == found.encoder.nonzero  # nothing of it is zero
    assert found.decoder.dense - found.decoder.nonzero == pytest.approx(spared)
    layers = sum(layer.multiply_adds.dense for layer in found.layers)
    rest = found.products.dense + found.other.dense
    assert layers + rest == pytest.approx(found.total.dense)


def test_weights_outside_layers_are_counted():
    """For example an output layer that is tied to the embedding."""
    half = torch.tensor([[1.0, 0.0]])
    tensors = {"layer": half.repeat(3, 1), "tied": half.repeat(5, 1)}
    encoder = Counts(Counter(layer=2.0), products=7.0)
    decoder = Counts(Counter(layer=1.0, tied=4.0))
    found = weights_of(tensors, ["layer"], Operations(encoder, decoder))
    assert found.layers[0].multiply_adds == MultiplyAdds(3 * 6, 3 * 3)
    assert found.encoder == MultiplyAdds(2 * 6 + 7, 2 * 3 + 7)
    assert found.decoder == MultiplyAdds(6 + 4 * 10, 3 + 4 * 5)
    assert found.products == MultiplyAdds(7, 7)
    assert found.other == MultiplyAdds(4 * 10, 4 * 5)
    assert found.total == MultiplyAdds(19 + 46, 13 + 23)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda text: text.replace("encoder_conf:", "encoder_cnf:"), "Error"),
        (lambda text: "a: [", "ParserError"),
        (lambda text: text.replace("normalize: null", STATS), "no/such.npz"),
        (lambda text: text.replace("joint_space_size: 12", "joint_space_size: 9"), ""),
        (lambda text: text.replace("embed_size: 12", "embed_size: 12\n" + MORE), "lac"),
    ],
)
def test_a_config_that_does_not_build_is_named(
    sparse, tmp_path, caplog, change, reason
):
    text = (sparse.parent / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(change(text))
    assert change(text) != text
    shutil.copy(sparse, tmp_path / "m.pth")
    with caplog.at_level(logging.WARNING):
        found = model_weights(tmp_path / "m.pth")
    assert found == stored_weights(read_tensors(tmp_path / "m.pth"))
    (message,) = [
        r.getMessage() for r in caplog.records if "config.yaml" in r.getMessage()
    ]
    assert str(tmp_path / "config.yaml") in message and reason in message
    assert "\n" not in message


STATS = "normalize: global_mvn\nnormalize_conf:\n  stats_file: no/such.npz"
MORE = "  num_layers: 2"


def test_a_model_that_does_not_run_keeps_its_layers(sparse, tmp_path, caplog):
    text = (sparse.parent / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("fs: 8000", "fs: 8"))
    shutil.copy(sparse, tmp_path / "m.pth")
    found = model_weights(tmp_path / "m.pth")
    assert "running the model on noise failed" in caplog.text
    assert found.total is None
    assert found.layers[0].multiply_adds is None
    assert found.sparsity == model_weights(sparse).sparsity


def test_the_table_of_layers(sparse):
    weights = model_weights(sparse)
    table = layer_table("thin", weights)
    assert table.startswith("## Layers of thin\n")
    # 8 x 12 zeros: 96 bits
    row = row_of(table, "joint_network.lin_out.weight")
    assert row[1:5] == ["8 x 12", "100.0", "0.4", "0.0"] and row[6] == "0"
    assert row_of(table, "decoder.rnn.0.weight_ih_l0")[1:3] == ["48 x 12", "50.0"]
    total = row_of(table, "total")
    assert total[2] == f"{100 * weights.sparsity:.1f}"
    assert total[3] == f"{weights.bytes / 1e3:.1f}"
    assert total[5] == f"{weights.total.dense / 1e6:.2f}"


def test_without_a_model_the_table_has_no_operations(sparse):
    table = layer_table("thin", stored_weights(read_tensors(sparse)))
    assert "M/s" not in table and "products" not in table
    assert len(row_of(table, "total")) == 5


def layer(name, values=4, zeros=1):
    return Layer(name, [values], zeros, zeros / values, 4 * values, 9, None)


def test_long_models_are_grouped():
    names = [f"encoder.{i}.{part}.weight" for i in range(3) for part in "abc"]
    layers = [layer(name) for name in [*names, "head.weight"]]
    assert list(grouped(layers, 10)) == [*names, "head.weight"]
    groups = grouped(layers, 9)
    assert list(groups) == [*(f"encoder.{i}.*" for i in range(3)), "head.weight"]
    assert [len(group) for group in groups.values()] == [3, 3, 3, 1]
    assert list(grouped(layers, 2)) == ["encoder.*", "head.*"]
    assert len(grouped([layer("a"), layer("b")], 1)) == 2  # nothing to cut
