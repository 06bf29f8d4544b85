"""The exported folder: decoded by stock ESPnet, never written over other files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from espnet_kd.export.folder import RECORD, export_folder, files_of, plain_config
from tests.export.models import MODEL, SEARCH, STATS, equal_to_the_bit

PARTS = ("weight", "bias")  # of a linear layer
# Stock inference of ESPnet, with no espnet_kd to import.
STOCK = """
import importlib, json, os, sys
sys.modules["espnet_kd"] = None
for folder, task, options in json.loads(sys.argv[1]):
    os.chdir(folder)
    importlib.import_module(f"espnet2.bin.{task}_inference").main(options)
assert not any(name.startswith("espnet_kd.") for name in sys.modules)
"""


def options(exp: Path, output: Path, data: Path, kind: str) -> list[str]:
    """Command line of stock inference."""
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(SEARCH[kind]))
    return [
        *("--asr_train_config", str(exp / "config.yaml")),
        *("--asr_model_file", str(exp / MODEL)),
        *("--data_path_and_name_and_type", f"{data / 'wav.scp'},speech,sound"),
        *("--output_dir", str(output), "--config", str(config), "--num_workers", "0"),
    ]


def test_stock_inference(student, recipe, tmp_path):
    jobs, outputs = [], {}
    for kind, task in (("hybrid", "asr"), ("asr_transducer", "asr_transducer")):
        exp = student(kind)
        plain, moved = tmp_path / kind / "plain", tmp_path / kind / "moved"
        export_folder(exp, MODEL, plain)
        shutil.copytree(plain, moved)
        outputs[kind] = [tmp_path / f"{kind}_{n}" for n in range(3)]
        for folder, place, output in zip(
            (exp, plain, Path()), (recipe.folder, recipe.folder, moved), outputs[kind]
        ):
            jobs.append((str(place), task, options(folder, output, recipe.data, kind)))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, json.dumps(jobs)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for kind, folders in outputs.items():
        for n, name in [(1, "text"), (2, "token_int"), (3, "score"), (1, "score")]:
            found = [(f / f"{n}best_recog" / name).read_text() for f in folders]
            assert len(found[0].splitlines()) == 8
            assert found[0] == found[1] == found[2], (kind, name)
        lists = [folders[0] / f"{n}best_recog" / "token_int" for n in (1, 2, 3)]
        lines = [line for path in lists for line in path.read_text().splitlines()]
        assert any(len(line.split()) > 1 for line in lines)  # not all are empty


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_contents_of_the_folder(student, tmp_path, kind):
    exp = student(kind)
    record = export_folder(exp, MODEL, tmp_path / "plain", ["csr", "int8"])
    before = yaml.safe_load((exp / "config.yaml").read_text())
    after = yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())
    gone = {"teacher_config", "teacher_model_file", "teacher_weight", "kd_conf"}
    assert before.keys() - after.keys() == gone
    assert after == {k: v for k, v in before.items() if k not in gone}

    copied = tmp_path / "plain" / MODEL
    assert not copied.is_symlink() and (exp / MODEL).is_symlink()
    one, other = torch.load(exp / MODEL), torch.load(copied)
    # Renamed weights have both names, for every version of ESPnet.
    renamed = ["encoder.embed.out.0", "encoder.embed.out"] if kind == "hybrid" else []
    assert {*one, *(f"{name}.{part}" for name in renamed for part in PARTS)} == {*other}
    for part in PARTS[: len(renamed)]:
        same = (other[f"{name}.{part}"] for name in renamed)
        assert equal_to_the_bit(*same)
    assert copied.stat().st_size < 1.2 * (exp / MODEL).stat().st_size
    assert all(equal_to_the_bit(one[name], other[name]) for name in one)

    found = {str(p.relative_to(tmp_path / "plain")): p for p in files(tmp_path)}
    expected = ["config.yaml", MODEL, STATS, RECORD]
    expected += ["valid.loss.ave.csr.pth", "valid.loss.ave.int8.pth"]
    assert set(found) == set(expected)
    assert json.loads(found[RECORD].read_text()) == record
    for each in record["forms"].values():
        assert each["bytes"] == found[each["file"]].stat().st_size


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_again(student, tmp_path):
    exp, plain = student("hybrid"), tmp_path / "plain"
    export_folder(exp, MODEL, plain, ["csr"])
    first = {path: path.read_bytes() for path in files(plain)}
    export_folder(exp, MODEL, plain, ["csr"])
    assert {path: path.read_bytes() for path in files(plain)} == first

    # A decoding is added; then it is exported with another form.
    (plain / "decode").mkdir()
    (plain / "decode" / "text").write_text("utt0 a\n")
    (plain / "export.md").write_text("of the old weights\n")
    export_folder(exp, MODEL, plain, ["int8"])
    assert (plain / "decode" / "text").read_text() == "utt0 a\n"
    assert (plain / "valid.loss.ave.int8.pth").exists()
    assert not (plain / "valid.loss.ave.csr.pth").exists()
    assert not (plain / "export.md").exists()


def test_an_empty_folder_is_accepted(student, tmp_path):
    (tmp_path / "plain").mkdir()
    export_folder(student("hybrid"), MODEL, tmp_path / "plain")
    assert (tmp_path / "plain" / "config.yaml").exists()


@pytest.mark.parametrize("record", [None, "", "[]", '{"made_by": "me"}'])
def test_folders_of_others_are_refused(student, tmp_path, record):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes").write_text("mine\n")
    if record is not None:
        (folder / RECORD).write_text(record)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with pytest.raises(ValueError, match="mine: exists without.*another --output_dir"):
        export_folder(student("hybrid"), MODEL, folder)
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_the_trained_folder_is_not_written_over(student):
    exp = student("hybrid")
    with pytest.raises(ValueError, match="exists without"):
        export_folder(exp, MODEL, exp)


def test_a_failure_leaves_nothing_behind(student, tmp_path):
    with pytest.raises(ValueError, match="2:4"):
        export_folder(
            student("hybrid", "dense"), MODEL, tmp_path / "x", ["int8", "2:4"]
        )
    assert not list(tmp_path.iterdir())


def test_wrong_checkpoints_are_refused(student, tmp_path):
    exp, other = student("hybrid"), tmp_path / "other"
    shutil.copytree(exp, other)
    with pytest.raises(FileNotFoundError, match="nothing.pth: no such checkpoint"):
        export_folder(other, "nothing.pth", tmp_path / "x")
    with pytest.raises(
        ValueError, match="model_file: ../a.pth must be the name of a file"
    ):
        export_folder(other, "../a.pth", tmp_path / "x")
    # A trainer's checkpoint: ESPnet would silently load nothing of it.
    state = torch.load(other / MODEL)
    torch.save({"model": state, "reporter": {}}, other / "checkpoint.pth")
    with pytest.raises(ValueError, match="checkpoint.pth: not a model's state_dict"):
        export_folder(other, "checkpoint.pth", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_files_that_inference_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/bpe.model", "exp/stats.npz", "data/wav.scp", "a/b", "top"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    config = dict(
        token_type="bpe",
        bpemodel="data/bpe.model",
        token_list=["<blank>", "a", "top"],
        normalize_conf=dict(stats_file="exp/stats.npz"),
        frontend_conf=dict(frontend_conf=dict(paths=["a/b", str(tmp_path / "a/b")])),
        train_data_path_and_name_and_type=[["data/wav.scp", "speech", "sound"]],
        encoder_conf=dict(input_layer="conv2d", other=f"../{tmp_path.name}/a/b"),
    )
    assert files_of(config) == ["a/b", "data/bpe.model", "exp/stats.npz"]
    config["bpemodel"] = "data/lost.model"
    with pytest.raises(FileNotFoundError, match="bpemodel: data/lost.model.*recipe"):
        files_of(config)


def test_configurations_without_kd_stay(student):
    config = yaml.safe_load((student("hybrid") / "config.yaml").read_text())
    plain = plain_config(config, student("hybrid") / "config.yaml")
    assert plain_config(plain, student("hybrid") / "config.yaml") == plain
