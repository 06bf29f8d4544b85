"""A checkpoint that does not fit is refused by name, wherever one is read."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet_kd import shim
from espnet_kd.export.folder import export_folder
from espnet_kd.models.espnet_versions import default_config, installed_version
from espnet_kd.models.loading import load_model, load_stock_model, whole_models
from espnet_kd.report.size import read_tensors
from espnet_kd.report.weights import model_weights
from espnet_kd.teacher.decoding import TeacherDecoder
from tests.tasks.recipe import KINDS, TOKENS, Model, Recipe, load_stock, teachers

TASKS = ["hybrid", "asr_transducer"]  # a kind of model of each
LARGER = {
    "hybrid": dict(encoder_conf=dict(linear_units=16)),
    "asr_transducer": dict(decoder_conf=dict(embed_size=16)),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def training(recipe: Recipe) -> Path:
    """checkpoint.pth of a real training."""
    return recipe.train("hybrid", "trained", stock=True) / "checkpoint.pth"


# ------------------------------------------------------------ files that do not fit


def without(state: dict, start: str) -> dict:
    return {name: value for name, value in state.items() if not name.startswith(start)}


def one_missing(state: dict) -> dict:
    return without(state, [name for name in state if "bias" in name][-1])


def cut_off(state: dict, path: Path) -> None:
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


# Name of the fault: the file's content, and the message.
CHANGED = {
    "module": (
        lambda state: {f"module.{name}": value for name, value in state.items()},
        r"lacks \d+ \(.+\) of the model's \d+ weights and has \d+ \(module\.",
    ),
    "no decoder": (
        lambda state: without(state, "decoder."),
        r"lacks \d+ \(decoder\..+\) of the model's \d+ weights\.",
    ),
    "one missing": (one_missing, r"lacks 1 \(\S+bias\) of the model's"),
    "one more": (
        lambda state: {**state, "decoder.extra": torch.ones(2)},
        r"has 1 \(decoder\.extra\) that the model does not have\.",
    ),
}
OTHER = {
    "empty file": (
        lambda state, path: path.write_bytes(b""),
        "the file is empty; copy it again",
    ),
    "empty dict": (
        lambda state, path: torch.save({}, path),
        r"not a model's state_dict \(it is empty\)",
    ),
    "cut off": (cut_off, r"the file is cut off after \d+ bytes; copy it again"),
    "text": (
        lambda state, path: path.write_text("version https://git-lfs.github.com"),
        "not a model's state_dict",
    ),
    "list": (
        lambda state, path: torch.save(list(state.values()), path),
        r"it contains a list",
    ),
    "missing file": (lambda state, path: None, "no such checkpoint"),
}
FAULTS = [*CHANGED, *OTHER, "larger", "checkpoint.pth", "pickled model"]


@pytest.fixture
def bad(recipe: Recipe, training: Path, tmp_path: Path, monkeypatch):
    """(kind, fault) -> (its Model, the message)."""
    monkeypatch.chdir(recipe.folder)

    def write(kind: str, fault: str) -> tuple[Model, str]:
        good = recipe.teacher(kind)
        config = tmp_path / "config.yaml"
        shutil.copyfile(good.config, config)
        path = tmp_path / "bad.pth"
        state = torch.load(good.checkpoint)
        if fault in CHANGED:
            change, message = CHANGED[fault]
            torch.save(change(state), path)
        elif fault in OTHER:
            make, message = OTHER[fault]
            make(state, path)
        elif fault == "larger":
            shutil.copyfile(recipe.teacher(kind, **LARGER[kind]).checkpoint, path)
            message = r"does not fit the model in \d+ \(size mismatch for \S+: .*\)"
        elif fault == "checkpoint.pth":
            shutil.copyfile(training, path)
            message = "not a model's state_dict .*not checkpoint.pth"
        else:
            torch.save(load_stock(good), path)
            message = "not a model's state_dict .*not a pickled model"
        return Model(str(config), str(path)), re.escape(str(path)) + ": .*" + message

    return write


# -------------------------------------------------------------------------- readers


def read_as_teacher(recipe: Recipe, kind: str, model: Model) -> None:
    losses = [dict(nodes="frames")]
    recipe.build(kind, kd_conf=dict(losses=losses), **teachers(model))


def start_from_it(recipe: Recipe, kind: str, model: Model) -> None:
    conf = dict(init_from_teacher=dict(layers="even"))
    recipe.build(kind, kd_conf=conf, **teachers(model))


def decode_with_it(recipe: Recipe, kind: str, model: Model) -> None:
    TeacherDecoder(model.config, model.checkpoint, dict(beam_size=2))


def export_it(recipe: Recipe, kind: str, model: Model) -> None:
    path = Path(model.checkpoint)
    export_folder(path.parent, path.name, path.parent / "plain", [])


def decode_through_shim(recipe: Recipe, kind: str, model: Model) -> None:
    """Stage 12 of kd.sh."""
    options = ["--asr_train_config", model.config, "--asr_model_file", model.checkpoint]
    options += ["--output_dir", f"{Path(model.config).parent}/decoded"]
    data = f"{recipe.data}/wav.scp,speech,sound"
    options += ["--data_path_and_name_and_type", data, "--beam_size", "1"]
    task, _ = KINDS[kind]
    shim.main(["-m", f"espnet2.bin.{task}_inference", *options])


READERS = [
    read_as_teacher,
    start_from_it,
    decode_with_it,
    export_it,
    decode_through_shim,
]


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))  # the shim sets it


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reader", READERS)
def test_what_does_not_fit_is_refused(
    recipe: Recipe, bad: Callable, reader: Callable, kind: str, fault: str
):
    model, message = bad(kind, fault)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        reader(recipe, kind, model)
    if fault in CHANGED:
        assert (
            f"Trained with ESPnet of unknown version, installed is "
            f"{installed_version()}. Give the checkpoint that was trained with "
            f"{model.config}" in str(refusal.value)
        )
    assert sorted(p.name for p in Path(model.config).parent.iterdir()) in (
        ["bad.pth", "config.yaml"],
        ["config.yaml"],
        ["bad.pth", "config.yaml", "decoded"],
    )


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reader", READERS)
def test_what_fits_is_read(
    recipe: Recipe, tmp_path: Path, monkeypatch, reader: Callable, kind: str
):
    monkeypatch.chdir(recipe.folder)
    good = recipe.teacher(kind)
    shutil.copyfile(good.config, tmp_path / "config.yaml")
    shutil.copyfile(good.checkpoint, tmp_path / "model.pth")
    reader(recipe, kind, Model(f"{tmp_path}/config.yaml", f"{tmp_path}/model.pth"))


def test_the_version_that_trained_it_is_named(bad: Callable):
    model, _ = bad("hybrid", "no decoder")
    config = yaml.safe_load(Path(model.config).read_text())
    Path(model.config).write_text(yaml.safe_dump(dict(config, version="202301")))
    with pytest.raises(ValueError, match="Trained with ESPnet 202301, installed is"):
        load_model(*model)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", TASKS)
def test_the_report_refuses_or_warns(bad: Callable, caplog, kind: str, fault: str):
    """It shows the size of any state_dict, but not how the model runs."""
    model, message = bad(kind, fault)
    if fault in CHANGED or fault == "larger":
        assert model_weights(model.checkpoint).total is None
        warned = " ".join(record.getMessage() for record in caplog.records)
        assert "building the model failed, multiply-adds are left out" in warned
        assert model.checkpoint in warned
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_tensors(model.checkpoint)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            model_weights(model.checkpoint)


# ------------------------------------------------------------------ language models


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    from espnet2.tasks.lm import LMTask

    folder = tmp_path_factory.mktemp("lm")
    config = default_config(LMTask)
    config.update(token_list=TOKENS, token_type="char", lm_conf=dict(unit=8, nlayers=1))
    model = LMTask.build_model(argparse.Namespace(**config))
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "version": "202412"}))
    torch.save(model.state_dict(), folder / "lm.pth")
    return Model(str(folder / "config.yaml"), str(folder / "lm.pth"))


@pytest.mark.parametrize("kind", TASKS)
def test_the_language_model_is_named(
    recipe: Recipe, lm: Model, tmp_path: Path, monkeypatch, kind: str
):
    monkeypatch.chdir(recipe.folder)
    path = tmp_path / "lm.pth"
    state = torch.load(lm.checkpoint)
    teacher = recipe.teacher(kind)
    options = dict(lm_train_config=lm.config, lm_file=str(path))

    def decoder() -> TeacherDecoder:
        return TeacherDecoder(*teacher, dict(beam_size=2), **options)

    torch.save(without(state, "lm.decoder"), path)
    message = (
        rf"{re.escape(str(path))}: lacks 2 \(lm\.decoder\.weight, lm\.decoder\.bias\) "
        rf"of the model's \d+ weights\. Trained with ESPnet 202412, installed is "
        rf"{installed_version()}\. Give the checkpoint that was trained with "
        rf"{re.escape(lm.config)}"
    )
    with pytest.raises(ValueError, match=message):
        decoder()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{path}: the file is empty"):
        decoder()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path}: no such checkpoint"):
        decoder()
    torch.save(state, path)
    decoder()


# ------------------------------------------------------------------ unchanged cases


def test_a_configuration_error_is_not_blamed_on_the_weights(bad: Callable):
    model, _ = bad("hybrid", "one more")
    config = yaml.safe_load(Path(model.config).read_text())
    config["encoder_conf"]["atention_heads"] = 2
    Path(model.config).write_text(yaml.safe_dump(config))
    with pytest.raises(TypeError, match="atention_heads"):
        load_model(*model)


def test_espnet_is_restored(recipe: Recipe, bad: Callable):
    from espnet2.tasks.abs_task import AbsTask
    from espnet2.train.abs_espnet_model import AbsESPnetModel

    before = AbsTask.__dict__["build_model_from_file"]
    model, message = bad("hybrid", "one missing")
    with pytest.raises(ValueError, match=message), whole_models(), whole_models():
        load_stock(model)
    assert AbsTask.__dict__["build_model_from_file"] is before
    assert "load_state_dict" not in vars(AbsESPnetModel)
    load_stock(model)  # stock ESPnet raises nothing


def test_a_model_within_a_model(recipe: Recipe, bad: Callable, monkeypatch):
    """A front end may load an ESPnet model of its own while its model is built."""
    from espnet2.tasks.asr import ASRTask

    good = recipe.teacher("hybrid")
    build_model = ASRTask.build_model.__func__
    inner: list[torch.nn.Module] = []

    def build_with_another(cls, args):
        if not inner:
            inner.append(torch.nn.Module())
            inner.append(ASRTask.build_model_from_file(*good)[0])
        return build_model(cls, args)

    monkeypatch.setattr(ASRTask, "build_model", classmethod(build_with_another))
    wanted = load_stock_model(*good).state_dict()
    assert equal_states(wanted, torch.load(good.checkpoint))
    assert equal_states(wanted, inner[1].state_dict())
    inner.clear()
    model, message = bad("hybrid", "one missing")
    with pytest.raises(ValueError, match=message):
        load_stock_model(*model)


def test_models_are_loaded_in_threads(recipe: Recipe):
    good = recipe.teacher("hybrid")
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: load_stock_model(*good), range(8)))
    state = torch.load(good.checkpoint)
    assert all(equal_states(model.state_dict(), state) for model in models)


def equal_states(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def test_a_branch_that_is_switched_off(recipe: Recipe, tmp_path: Path, caplog):
    """ESPnet of 2020 saved the decoder of a model that is trained by CTC alone."""
    good = recipe.teacher("hybrid")
    config = yaml.safe_load(Path(good.config).read_text())
    config["model_conf"]["ctc_weight"] = 1.0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    model = load_stock_model(tmp_path / "config.yaml", good.checkpoint)
    assert model.decoder is None
    assert "Not used, as the model does not have them: " in caplog.text


@pytest.mark.parametrize("key", ["module", "state_dict"])
def test_files_of_deepspeed_and_lightning(recipe: Recipe, tmp_path: Path, key: str):
    """Stock ESPnet reads these since 202609."""
    good = recipe.teacher("hybrid")
    state = torch.load(good.checkpoint)
    torch.save({key: state}, tmp_path / "model.pth")
    model = load_stock_model(good.config, tmp_path / "model.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_espnets_switch_for_other_files(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = recipe.teacher("hybrid")
    state = torch.load(good.checkpoint)
    more = dict(state_dict=state, epoch=np.int64(3))  # as Lightning may write
    torch.save(more, tmp_path / "lightning.pth")
    with pytest.raises(ValueError, match="not a model's state_dict"):
        read_tensors(tmp_path / "lightning.pth")
    monkeypatch.setenv("ESPNET_ALLOW_UNSAFE_TORCH_LOAD", "1")
    assert read_tensors(tmp_path / "lightning.pth").keys() == state.keys()


def test_adapters_alone(recipe: Recipe, tmp_path: Path, monkeypatch):
    """ESPnet's file of a fine-tuned model with `save_strategy: adapter_only`."""
    lora = pytest.importorskip("loralib")
    from espnet2.layers.create_adapter import create_adapter

    conf = dict(rank=2, alpha=2, target_modules=["linear_q"])
    good = recipe.teacher("hybrid")
    model = load_stock(good)
    create_adapter(model, "lora", conf)
    adapters = lora.lora_state_dict(model)
    assert adapters
    config = dict(
        yaml.safe_load(Path(good.config).read_text()),
        use_adapter=True,
        adapter="lora",
        adapter_conf=conf,
        save_strategy="adapter_only",
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(adapters, tmp_path / "adapters.pth")
    read = load_stock_model(tmp_path / "config.yaml", tmp_path / "adapters.pth")
    for name, value in adapters.items():
        assert torch.equal(read.state_dict()[name], value)
    torch.save({**adapters, "other": torch.ones(1)}, tmp_path / "adapters.pth")
    with pytest.raises(ValueError, match=r"has 1 \(other\)"):
        load_stock_model(tmp_path / "config.yaml", tmp_path / "adapters.pth")
    torch.save(dict(list(adapters.items())[1:]), tmp_path / "adapters.pth")
    with pytest.raises(ValueError, match="lacks 1 .*lora_"):
        load_stock_model(tmp_path / "config.yaml", tmp_path / "adapters.pth")
    # A base that came from --init_param is missing when the model is read.
    torch.save(adapters, tmp_path / "adapters.pth")
    config["init_param"] = [good.checkpoint]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="lacks .* of the model's"):
        load_stock_model(tmp_path / "config.yaml", tmp_path / "adapters.pth")
