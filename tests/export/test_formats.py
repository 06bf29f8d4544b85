"""CSR and 2:4: parts by hand, and back to the bit."""

import pytest
import torch
from torch import Tensor

from espnet_kd.export import formats, names
from tests.export.models import MODEL, equal_to_the_bit, prunable_names, prune

SHAPES = [(5, 7), (1, 1), (8, 12), (3, 2, 3), (4, 1, 3, 5), (2, 3, 2, 1, 3), (64, 12)]


def test_csr_by_hand():
    weight = torch.tensor([[0.0, 2, 0, 3], [0, 0, 0, 0], [4, 0, 0, 0]])
    parts = formats.pack_csr(weight)
    assert parts["crow"].tolist() == [0, 2, 2, 3]
    assert parts["col"].tolist() == [1, 3, 0]
    assert parts["values"].tolist() == [2, 3, 4]
    assert parts["shape"] == [3, 4]
    assert parts["crow"].dtype == parts["col"].dtype == torch.int32


def test_csr_parts_are_torchs():
    weight = prune(torch.randn(9, 5, 3), "0.7")
    torchs = weight.flatten(1).to_sparse_csr()
    parts = formats.pack_csr(weight)
    assert parts["crow"].tolist() == torchs.crow_indices().tolist()
    assert parts["col"].tolist() == torchs.col_indices().tolist()
    assert parts["values"].tolist() == torchs.values().tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", ["0", "0.5", "0.9", "1"])
def test_csr_back_to_the_bit(shape, pattern):
    weight = prune(torch.randn(shape), pattern)
    assert equal_to_the_bit(formats.unpack_csr(formats.pack_csr(weight)), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    weight = prune(torch.randn(6, 8), "2:4").to(dtype)
    for pack, unpack in (
        (formats.pack_csr, formats.unpack_csr),
        (formats.pack_2_to_4, formats.unpack_2_to_4),
    ):
        back = unpack(pack(weight))
        assert back.dtype == dtype and torch.equal(back, weight)


def test_csr_is_used_if_smaller():
    # 4 x 8 fp32 = 128 bytes; 5 row pointers = 20; 8 bytes a value: 13 fit, 14 do not.
    weight = torch.zeros(4, 8)
    weight.view(-1)[:13] = 1
    assert formats.csr_is_smaller(weight)
    weight.view(-1)[13] = 1
    assert not formats.csr_is_smaller(weight)
    # In half precision 64 bytes and 6 bytes a value: 7.
    weight.zero_().view(-1)[:7] = 1
    assert formats.csr_is_smaller(weight.half())
    weight.view(-1)[7] = 1
    assert not formats.csr_is_smaller(weight.half())


def test_2_to_4_by_hand():
    weight = torch.tensor([[0.0, 5, 0, 6, 7, 8, 0, 0, 0, 0, 9, 0]])
    parts = formats.pack_2_to_4(weight)
    # 9 is third; the first zero of its group, at index 0, is stored with it.
    assert parts["values"].tolist() == [[5, 6, 7, 8, 0, 9]]
    groups = [1 + 4 * 3, 0 + 4 * 1, 0 + 4 * 2]
    assert parts["positions"].tolist() == [groups[0] + 16 * groups[1], groups[2]]
    assert parts["positions"].dtype == torch.uint8
    assert equal_to_the_bit(formats.unpack_2_to_4(parts), weight)


@pytest.mark.parametrize("shape", [(1, 4), (3, 12), (8, 64), (5, 4, 3), (2, 2, 2, 5)])
@pytest.mark.parametrize("more", ["0", "0.6", "1"])
def test_2_to_4_back_to_the_bit(shape, more):
    weight = prune(prune(torch.randn(shape), "2:4"), more)
    assert formats.obeys_2_to_4(weight)
    assert equal_to_the_bit(formats.unpack_2_to_4(formats.pack_2_to_4(weight)), weight)


def test_what_does_not_obey_2_to_4():
    three = torch.zeros(2, 8)
    three[1, 4:7] = 1
    assert not formats.obeys_2_to_4(three)
    assert not formats.obeys_2_to_4(torch.zeros(2, 6))  # no whole groups
    across = torch.tensor([[0.0, 0, 1, 1, 1, 1, 0, 0]])  # four in a row, two a group
    assert formats.obeys_2_to_4(across)


def test_a_minus_zero_is_a_zero():
    weight = torch.zeros(4, 8)
    weight[0, 3], weight[2, 1] = 1.5, -0.0
    assert len(formats.pack_csr(weight)["values"]) == 1
    assert torch.equal(formats.unpack_csr(formats.pack_csr(weight)), weight)


def test_tied_weights_are_stored_once(tmp_path):
    weight = prune(torch.randn(32, 40), "0.9")
    state = {"out.weight": weight, "tied.weight": weight, "other": torch.randn(3)}
    sizes = []
    for stored in (["out.weight", "other"], ["out.weight", "tied.weight", "other"]):
        path = tmp_path / "model.csr.pth"
        chosen = {name: state[name] for name in stored}
        formats.save_compressed(path, chosen, ["out.weight"], "csr")
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] < 300  # a name, not 128 values and their columns
    back = formats.load_compressed(path)
    assert torch.equal(back["tied.weight"], weight) and list(back) == list(state)


@pytest.mark.parametrize("form, pattern", [("csr", "0.8"), ("2:4", "2:4")])
@pytest.mark.parametrize("kind", ["hybrid", "transducer", "asr_transducer"])
def test_model_back_to_the_bit(student, tmp_path, kind, form, pattern):
    exp = student(kind, pattern)
    state, weights = torch.load(exp / MODEL), prunable_names(exp)
    path = names.path_of(tmp_path / MODEL, form)
    formats.save_compressed(path, state, weights, form)
    assert names.form_of(path) == form
    back = formats.load_compressed(path)
    assert list(back) == list(state)
    assert all(equal_to_the_bit(back[name], state[name]) for name in state)

    packed = formats.compressed_names(path)
    assert set(packed) <= set(weights)
    assert {state[name].dim() for name in packed} >= ({2, 4} if form == "csr" else {2})
    if kind != "hybrid":
        assert any("weight_hh" in name for name in packed)
    assert path.stat().st_size < (exp / MODEL).stat().st_size


def test_only_the_named_weights_are_compressed():
    state = {"a": torch.zeros(20, 20), "b": torch.zeros(20, 20)}
    tensors = formats.compress(state, ["a"], "csr")["tensors"]
    assert isinstance(tensors["a"], dict) and isinstance(tensors["b"], Tensor)


@pytest.mark.parametrize("form, reason", [("csr", "half"), ("2:4", "neighbours")])
def test_dense_weights_are_refused(form, reason, tmp_path):
    state = {"weight": torch.randn(8, 8)}
    path = tmp_path / "model.pth"
    with pytest.raises(ValueError, match=f"{form}.*none of 1 weights.*{reason}"):
        formats.save_compressed(path, state, ["weight"], form)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.csr.pth")
    with pytest.raises(ValueError, match="model.csr.pth: not a compressed model"):
        formats.load_compressed(tmp_path / "model.csr.pth")


def test_names_of_files():
    assert names.path_of("x/valid.loss.ave.pth", "2:4").name == (
        "valid.loss.ave.2to4.pth"
    )
    assert names.form_of("x/valid.loss.ave.int8.pth") == "int8"
    assert names.form_of("x/valid.loss.ave.pth") == "dense"
