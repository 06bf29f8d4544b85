"""Weights under the names of another version of ESPnet."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_kd.compress.init_from_teacher import init_from_teacher
from espnet_kd.compress.pruning import make_pruner
from espnet_kd.config.kd_conf import parse_kd_conf
from espnet_kd.export import formats
from espnet_kd.export.folder import export_folder
from espnet_kd.export.inference import load_speech2text
from espnet_kd.models import espnet_versions
from espnet_kd.models.espnet_versions import installed_version, under_both_names
from espnet_kd.models.loading import load_init_param, load_stock_model
from espnet_kd.report.size import read_tensors, size_of
from espnet_kd.report.weights import model_weights
from tests.models.encoders import (
    ENCODERS,
    IDS,
    before_202609,
    encode,
    folders,
    write_model,
)
from tests.tasks.recipe import Model, Recipe, load_stock, teachers

OLD = installed_version() < "202609"
SCALED = IDS.index("conformer conv2d scaled_abs_pos")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def model(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    """index of an encoder -> its model, written once."""
    monkeypatch.chdir(recipe.folder)

    def written(index: int) -> Model:
        folder = folders()[index]
        path = recipe.folder / folder
        if path.exists():
            return Model(f"{path}/config.yaml", f"{path}/model.pth")
        return write_model(recipe, folder, *ENCODERS[index])

    return written


def translated(index: int, state: dict) -> dict:
    """The state_dict that another version of ESPnet would have written."""
    names = before_202609(*ENCODERS[index])
    if not OLD:
        names = {new: old for old, new in names.items()}
    assert names.keys() <= state.keys()
    return {names.get(name, name): value for name, value in state.items()}


def there(name: str) -> str:
    """Another version's name of a weight or module of that model."""
    if OLD:
        name = name.replace("embed.out.0", "embed.out")
        return name.replace("embed.out.1", "embed.pos_enc")
    name = re.sub(r"embed\.out(?=\.|$)", "embed.out.0", name)
    return name.replace("embed.pos_enc", "embed.out.1")


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("index", range(len(ENCODERS)), ids=IDS)
def test_names_of_the_other_versions(recipe: Recipe, model, tmp_path, index: int):
    config, checkpoint = model(index)
    state = torch.load(checkpoint)
    stock = load_stock(Model(config, checkpoint))
    other = translated(index, state)
    both = under_both_names(stock, state)
    assert equal(both, {**state, **other})
    for number, written in enumerate((other, both)):
        path = tmp_path / f"{number}.pth"
        torch.save(written, path)
        read = load_stock_model(config, path).eval()
        assert equal(read.state_dict(), state)
    for ours, theirs in zip(encode(read, recipe), encode(stock, recipe)):
        assert torch.equal(ours, theirs)
    # Values are stored once.
    size = Path(checkpoint).stat().st_size
    assert path.stat().st_size < size + 800 * len(both.keys() - state.keys()) + 100


def test_a_missing_weight_has_its_name_in_this_version(model, tmp_path):
    config, checkpoint = model(SCALED)
    state = translated(SCALED, torch.load(checkpoint))
    gone = [name for name in state if name.endswith(".alpha")]
    assert len(gone) == 1
    torch.save({k: v for k, v in state.items() if k not in gone}, tmp_path / "m.pth")
    name = "out.1.alpha" if OLD else "pos_enc.alpha"
    with pytest.raises(ValueError, match=rf"lacks 1 \(encoder\.embed\.{name}\)"):
        load_stock_model(config, tmp_path / "m.pth")


# -------------------------------------------------------------------------- readers


@pytest.fixture
def pair(model, tmp_path) -> tuple[Path, Path]:
    """Two folders with one model, under the names of this version and of another."""
    config, checkpoint = model(SCALED)
    state = torch.load(checkpoint)
    name = "encoder.embed.out.0.weight" if OLD else "encoder.embed.out.weight"
    state[name][:10] = 0
    state["encoder.encoders.0.feed_forward.w_1.weight"].view(-1)[: 16 * 9] = 0
    exps = tmp_path / "here", tmp_path / "there"
    for exp, written in zip(exps, (state, translated(SCALED, state))):
        exp.mkdir()
        (exp / "config.yaml").write_text(Path(config).read_text())
        torch.save(written, exp / "model.pth")
    return exps


def test_report(pair):
    here, there = (exp / "model.pth" for exp in pair)
    assert model_weights(here) == model_weights(there)
    assert model_weights(there).total is not None
    sizes = [size_of(read_tensors(path)) for path in (here, there)]
    torch.save(
        under_both_names(
            load_stock_model(pair[0] / "config.yaml", here), torch.load(here)
        ),
        here,
    )
    assert sizes[0] == sizes[1] == size_of(read_tensors(here))
    assert model_weights(here) == model_weights(there)


def test_export_and_its_forms(pair, recipe: Recipe, tmp_path):
    samples = recipe.batch([4])["speech"][0].numpy()
    outputs = {}
    for exp in pair:
        out = tmp_path / f"plain_{exp.name}"
        forms = export_folder(exp, "model.pth", out, ["csr", "int8"])["forms"]
        for form in forms.values():
            path = out / form["file"]
            read = load_speech2text(out / "config.yaml", path, beam_size=2)
            outputs[exp.name, path.name] = read(samples)[0][3].score
    names = {name for _, name in outputs}
    assert names == {"model.pth", "model.csr.pth", "model.int8.pth"}
    for name in names:
        assert outputs["here", name] == outputs["there", name]


def test_forms_of_another_version(pair, recipe: Recipe, tmp_path):
    """An .int8.pth and a .csr.pth exported in another version."""
    samples = recipe.batch([4])["speech"][0].numpy()
    out = tmp_path / "plain"
    export_folder(pair[0], "model.pth", out, ["csr", "int8"])
    path = out / "model.int8.pth"
    options = {} if torch.__version__ < "2" else dict(weights_only=False)
    content = torch.load(path, **options)
    state = content["state_dict"]
    renamed = type(state)((there(name), value) for name, value in state.items())
    modules = state._metadata.items()
    renamed._metadata = {there(path): version for path, version in modules}
    assert any(re.search(r"embed\.out\.(0\.)?_packed", name) for name in renamed)
    assert len(renamed.keys() - state.keys()) > 2
    before = load_speech2text(out / "config.yaml", path, beam_size=2)(samples)
    torch.save({**content, "state_dict": renamed}, path)
    after = load_speech2text(out / "config.yaml", path, beam_size=2)(samples)
    assert before[0][3].score == after[0][3].score

    path = out / "model.csr.pth"
    names = formats.compressed_names(path)
    ours = "encoder.embed.out.0" if OLD else "encoder.embed.out"
    assert f"{ours}.weight" in names
    other = translated(SCALED, formats.load_compressed(path))
    formats.save_compressed(path, other, [there(name) for name in names], "csr")
    csr = load_speech2text(out / "config.yaml", path, beam_size=2).asr_model
    assert csr.get_submodule(ours).weight.layout == torch.sparse_csr


def test_teachers(pair, recipe: Recipe, model):
    """A KD teacher, and one that initialises a student."""
    here, there = (Model(f"{e}/config.yaml", f"{e}/model.pth") for e in pair)
    conf = yaml.safe_load(Path(here.config).read_text())["encoder_conf"]
    args = dict(encoder="conformer", encoder_conf=conf)
    losses = []
    for teacher in (here, there):
        student = recipe.build(
            "ctc",
            kd_conf=dict(losses=[dict(nodes="frames")]),
            **args,
            **teachers(teacher),
        ).train()
        torch.manual_seed(0)
        losses.append(float(student(**recipe.batch())[0]))
    assert losses[0] == losses[1]

    theirs = load_stock_model(*there)
    student = load_stock(model(SCALED))
    conf = parse_kd_conf(dict(init_from_teacher=dict())).init_from_teacher
    names = init_from_teacher(student, theirs, conf, "teacher")
    assert {"encoder.embed.out.1.alpha", "encoder.embed.pos_enc.alpha"} & {*names}
    assert equal(student.state_dict(), load_stock_model(*here).state_dict())


# -------------------------------------------------------------------------- pruning


def pruner(model: torch.nn.Module, **conf):
    conf = dict(sparsity=0.5, end=10, **conf)
    return make_pruner(model, parse_kd_conf(dict(pruning=conf)).pruning)


@pytest.mark.parametrize(
    "pattern", ["encoder.embed.out.0.weight", "*.embed.out.weight"]
)
def test_patterns_with_names_of_either_version(model, pattern: str):
    name = "encoder.embed.out.0.weight" if OLD else "encoder.embed.out.weight"
    asr = load_stock_model(*model(SCALED))
    assert set(pruner(asr, parameters=[pattern]).weights) == {name}
    assert name in pruner(asr).weights
    assert name not in pruner(asr, exclude=[pattern]).weights
    # `out` of other layers was not renamed.
    plain = load_stock_model(*model(IDS.index("contextual_block_transformer conv2d")))
    found = set(pruner(plain, parameters=["*.embed.out.weight"]).weights)
    assert found == {"encoder.embed.out.weight"}  # in all versions
    with pytest.raises(ValueError, match="matches none of the names"):
        pruner(plain, parameters=["*.embed.out.0.weight"])


def test_a_pruned_training_resumes_in_another_version(model):
    asr = load_stock_model(*model(SCALED))
    first = pruner(asr, start=0, every=1)
    optimizer = torch.optim.SGD(asr.parameters(), lr=0.1)
    first.after_update(5, optimizer)
    state = first.state_dict()
    assert state["pruned"] and state["remembered"]
    for part in ("pruned", "remembered"):
        state[part] = {there(name): value for name, value in state[part].items()}
    second = pruner(load_stock_model(*model(SCALED)), start=0, every=1)
    second.load_state_dict(state)
    assert second.sparsity == first.sparsity > 0
    assert equal(second.pruned, first.pruned)
    assert second.remembered.keys() == first.remembered.keys()


# ----------------------------------------------------------------------- init_param


def start(model, **options) -> torch.nn.Module:
    """Another model of the same sizes, after `--init_param`."""
    student = load_stock_model(*model(SCALED)).train()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    load_init_param(model=student, **{"ignore_init_mismatch": False, **options})
    return student


def test_init_param_of_a_model_without_self_conditioning(recipe, pair):
    """Additions of fine-tuning to a part may be missing in the file."""
    config = yaml.safe_load((pair[0] / "config.yaml").read_text())
    config["encoder_conf"].update(
        interctc_layer_idx=[1], interctc_use_conditioning=True
    )
    config["encoder_conf"]["num_blocks"] = 2
    config["model_conf"] = dict(config["model_conf"], interctc_weight=0.5)
    student = ASRTask.build_model(argparse.Namespace(**config))
    base = student.state_dict()
    layer = [name for name in base if "conditioning_layer" in name]
    assert layer
    torch.save({n: v + 1 for n, v in base.items() if n not in layer}, "base.pth")
    before = {name: base[name].clone() for name in layer}
    load_init_param("base.pth", student, ignore_init_mismatch=False)
    for name in layer:
        assert torch.equal(student.state_dict()[name], before[name])


def test_init_param_takes_renamed_weights(pair, model):
    here, there = (exp / "model.pth" for exp in pair)
    wanted = load_stock_model(pair[0] / "config.yaml", here).state_dict()
    for ignore in (False, True):
        for path in (here, there):
            student = start(model, init_param=str(path), ignore_init_mismatch=ignore)
            assert equal(student.state_dict(), wanted)
    for part in ("encoder", "encoder.embed"):
        student = start(model, init_param=f"{there}:{part}:{part}").state_dict()
        for name, value in student.items():
            if bool((value == 7).any()):  # the parameters of `start`
                assert not name.startswith(part)
            elif name.startswith(part):
                assert torch.equal(value, wanted[name]), name
    # Names to leave out, of either version.
    for name in ("encoder.embed.out.0", "encoder.embed.out.weight,encoder.embed.out.b"):
        student = start(model, init_param=f"{there}:::{name}").state_dict()
        for each in before_202609(*ENCODERS[SCALED]).items():
            value = student[each[not OLD]]
            assert torch.equal(value, wanted[each[not OLD]]) == ("alpha" in each[0])


def test_init_param_that_does_not_fit(pair, model, tmp_path, caplog):
    path = pair[1] / "model.pth"
    state = torch.load(path)
    part = tmp_path / "part.pth"

    def refused(written: dict, message: str, suffix: str = "", **options) -> None:
        torch.save(written, part)
        given = f"{part}{suffix}"
        message = re.escape(f"--init_param {given}: ") + message
        with pytest.raises(ValueError, match=message):
            start(model, init_param=given, **options)

    bias = "ctc.ctc_lo.bias"
    refused({**state, "x": state[bias]}, r"has 1 \(x\) that the model does not have")
    refused(
        {k: v for k, v in state.items() if k != bias}, r"lacks 1 \(ctc\.ctc_lo\.bias"
    )
    size = rf"does not fit the model in 1 \(size mismatch for {bias}"
    refused({**state, bias: torch.ones(3)}, size)
    refused({f"module.{k}": v for k, v in state.items()}, "has no weights of the model")
    refused(state, "has no weights of the model", ":encodr:encoder")
    refused(state, "encodr is not a part of the model, which has", ":encoder:encodr")
    refused(
        {"x": state[bias]}, "has no weights of the model", ignore_init_mismatch=True
    )
    part.write_bytes(b"")
    with pytest.raises(ValueError, match="part.pth: the file is empty"):
        start(model, init_param=str(part))

    # A part that is not in it stays unchanged.
    torch.save({k: v for k, v in state.items() if not k.startswith("ctc")}, part)
    student = start(model, init_param=str(part))
    assert bool((student.ctc.ctc_lo.weight == 7).all())
    assert (
        "2 (ctc.ctc_lo.weight, ctc.ctc_lo.bias) of the model's weights" in caplog.text
    )
    torch.save({**state, bias: torch.ones(3)}, part)
    student = start(model, init_param=str(part), ignore_init_mismatch=True)
    assert bool((student.ctc.ctc_lo.bias == 7).all())


@pytest.mark.parametrize("ignore", [False, True])
def test_training_starts_from_another_versions_file(pair, recipe: Recipe, ignore):
    """Through ESPnet's own training, with a learning rate that keeps the weights."""
    here, there = pair
    conf = yaml.safe_load((here / "config.yaml").read_text())
    name = f"started_{ignore}"
    folder = recipe.train(
        "ctc",
        name,
        encoder="conformer",
        encoder_conf=conf["encoder_conf"],
        optim_conf=dict(lr=0.0),
        init_param=[str(there / "model.pth")],
        ignore_init_mismatch=ignore,
    )
    trained = torch.load(folder / "1epoch.pth")
    wanted = torch.load(here / "model.pth")
    names = [
        n
        for n, p in load_stock_model(
            here / "config.yaml", here / "model.pth"
        ).named_parameters()
    ]
    assert all(torch.equal(trained[n], wanted[n]) for n in names)


# ---------------------------------------------------------------- untested versions


@pytest.mark.parametrize(
    "installed, warned",
    [("202612", 1), ("202701.post1", 1), ("202611", 0), ("202412", 0), ("0.1", 0)],
)
def test_one_line_for_a_version_newer_than_tested(
    recipe: Recipe, model, monkeypatch, caplog, installed: str, warned: int
):
    monkeypatch.setattr(espnet_versions, "installed_version", lambda: installed)
    espnet_versions.warn_of_untested_version.cache_clear()
    teacher = teachers(recipe.teacher("ctc"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            recipe.build("ctc", kd_conf=dict(losses=[dict(nodes="frames")]), **teacher)
    lines = [
        r.getMessage() for r in caplog.records if "is newer than" in r.getMessage()
    ]
    assert len(lines) == warned
    if warned:
        assert lines[0].startswith(f"ESPnet {installed} is newer than 202611, the")
    espnet_versions.warn_of_untested_version.cache_clear()


def test_defaults_of_a_task_do_not_depend_on_the_command_line(monkeypatch):
    """ESPnet parses sys.argv, and takes an abbreviation for an option of its own."""
    words = ["export", "--ignore", "tests", "--max_epoch", "7"]
    monkeypatch.setattr(sys, "argv", words)
    options = espnet_versions.default_config(ASRTask)
    assert (options["max_epoch"], options["ignore_init_mismatch"]) == (40, False)
    assert sys.argv == words
