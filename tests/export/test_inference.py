"""Stock inference with each form: equal or close to the dense model."""

import copy
import warnings

import pytest
import torch

from espnet_kd.export import formats
from espnet_kd.export.inference import (
    INT8,
    CSRLinear,
    load_speech2text,
    save_int8,
    use_csr,
)
from tests.export.models import MODEL, SEARCH, prunable_names, prune, samples

KINDS = ["hybrid", "transducer", "asr_transducer"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (7, 8), (2, 3, 8), (1, 1, 1, 8)])
def test_csr_linear(shape, bias):
    dense = torch.nn.Linear(8, 5, bias=bias)
    prune(dense.weight.data, "0.7")
    model = torch.nn.ModuleDict({"part": copy.deepcopy(dense)})
    assert use_csr(model, ["part.weight"]) == ["part"]
    assert isinstance(model["part"], CSRLinear)
    assert model["part"].weight.layout == torch.sparse_csr
    x = torch.randn(shape)
    with torch.no_grad():
        out = model["part"](x)
        torch.testing.assert_close(out, dense(x), atol=1e-6, rtol=1e-5)
    assert out.is_contiguous()


def decode(speech2text, kind, recipe, number):
    """Text, token ids and score of each entry of the n-best list."""
    found = speech2text(samples(recipe, number))
    if kind == "asr_transducer":
        found = speech2text.hypotheses_to_results(found)
    return [(text, list(ids), float(hyp.score)) for text, _, ids, hyp in found]


def encode(speech2text, recipe, number):
    """Encoder frames (T, D)."""
    speech = torch.from_numpy(samples(recipe, number))[None]
    with torch.no_grad():
        return speech2text.asr_model.encode(speech, torch.tensor([speech.size(1)]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_csr_model(student, recipe, tmp_path, kind):
    exp = student(kind)
    config, path = exp / "config.yaml", tmp_path / "model.csr.pth"
    formats.save_compressed(path, torch.load(exp / MODEL), prunable_names(exp), "csr")
    dense = load_speech2text(config, exp / MODEL, **SEARCH[kind])
    sparse = load_speech2text(config, path, **SEARCH[kind])
    layers = [m for m in sparse.asr_model.modules() if isinstance(m, CSRLinear)]
    assert len(layers) > 5
    for number in (1, 4):
        torch.testing.assert_close(
            encode(sparse, recipe, number),
            encode(dense, recipe, number),
            atol=1e-5,
            rtol=0,
        )
    one, other = (decode(model, kind, recipe, 1) for model in (dense, sparse))
    assert len(one) == 3 and any(ids for _, ids, _ in one)
    assert [x[:2] for x in one] == [x[:2] for x in other]
    assert [x[2] for x in one] == pytest.approx([x[2] for x in other], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_2_to_4_model(student, recipe, tmp_path, kind):
    exp = student(kind, "2:4")
    path = tmp_path / "model.2to4.pth"
    formats.save_compressed(path, torch.load(exp / MODEL), prunable_names(exp), "2:4")
    one, other = (
        decode(
            load_speech2text(exp / "config.yaml", f, **SEARCH[kind]), kind, recipe, 1
        )
        for f in (exp / MODEL, path)
    )
    assert one == other


@pytest.mark.parametrize("kind", KINDS)
def test_int8_model(student, recipe, tmp_path, kind):
    exp = student(kind)
    config, path = exp / "config.yaml", tmp_path / "model.int8.pth"
    save_int8(path, config, exp / MODEL)
    stock = load_speech2text(config, exp / MODEL, **SEARCH[kind], **INT8)
    loaded = load_speech2text(config, path, **SEARCH[kind])
    kept = [m for m in loaded.asr_model.modules() if type(m) is torch.nn.Linear]
    assert not kept
    if kind != "hybrid":
        assert "DynamicQuantizedLSTM" in str(loaded.asr_model.decoder)
    assert decode(loaded, kind, recipe, 1) == decode(stock, kind, recipe, 1)

    dense = load_speech2text(config, exp / MODEL)
    frames = encode(dense, recipe, 4)
    error = (encode(loaded, recipe, 4) - frames).abs().mean() / frames.abs().mean()
    assert 0 < error < 0.05


def test_int8_joint_network_takes_vectors(student, recipe, tmp_path):
    exp = student("transducer")
    path = tmp_path / "model.int8.pth"
    save_int8(path, exp / "config.yaml", exp / MODEL)
    stock, loaded = (
        load_speech2text(exp / "config.yaml", file, beam_size=1, **INT8)
        for file in (exp / MODEL, path)
    )
    joint = [model.asr_model.joint_network for model in (stock, loaded)]
    frames, states = torch.randn(5, 32), torch.randn(5, 12)
    by_vector = torch.stack([joint[1](x, y) for x, y in zip(frames, states)])
    one_by_one = [joint[0](x[None], y[None])[0] for x, y in zip(frames, states)]
    assert torch.equal(by_vector, torch.stack(one_by_one))
    assert decode(loaded, "transducer", recipe, 1)


def test_int8_is_smaller(student, tmp_path):
    exp = student("hybrid")
    save_int8(tmp_path / "model.int8.pth", exp / "config.yaml", exp / MODEL)
    size = (tmp_path / "model.int8.pth").stat().st_size
    assert size < 0.8 * (exp / MODEL).stat().st_size


def test_int8_without_torchs_warnings(student, tmp_path):
    """torch deprecates the package used by ESPnet; users cannot change that."""
    exp, path = student("hybrid"), tmp_path / "model.int8.pth"
    torch.set_warn_always(True)  # instead of once per process
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_int8(path, exp / "config.yaml", exp / MODEL)
            load_speech2text(exp / "config.yaml", path, **SEARCH["hybrid"])
    finally:
        torch.set_warn_always(False)
    assert [
        str(each.message) for each in caught if "deprecat" in str(each.message)
    ] == []


def test_missing_weights_are_refused(student, tmp_path):
    exp = student("hybrid")
    state = torch.load(exp / MODEL)
    state.pop("ctc.ctc_lo.bias")
    path = tmp_path / "model.csr.pth"
    weights = [name for name in prunable_names(exp) if name in state]
    formats.save_compressed(path, state, weights, "csr")
    with pytest.raises(ValueError, match=rf"{path}: lacks 1 \(ctc.ctc_lo.bias\)"):
        load_speech2text(exp / "config.yaml", path)


def test_missing_and_other_files_are_refused(student, tmp_path):
    exp = student("hybrid")
    with pytest.raises(FileNotFoundError, match="x.int8.pth: no such model"):
        load_speech2text(exp / "config.yaml", tmp_path / "x.int8.pth")
    torch.save({}, tmp_path / "x.int8.pth")
    with pytest.raises(ValueError, match="x.int8.pth: not a quantised model"):
        load_speech2text(exp / "config.yaml", tmp_path / "x.int8.pth")


def test_outside_the_recipe(student, tmp_path, monkeypatch):
    exp = student("hybrid")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="feats_stats.npz.*recipe folder"):
        load_speech2text(exp / "config.yaml", exp / MODEL)
