"""``python -m espnet_kd.bin.export`` as called by recipes, measured on real audio."""

import json

import pytest
import torch
import yaml

from espnet_kd.bin.export import main
from espnet_kd.bin.teacher_decode import main as teacher_decode
from espnet_kd.export.formats import load_compressed
from espnet_kd.models.espnet_versions import named_as
from espnet_kd.report.scoring import score
from espnet_kd.targets.hypotheses import hypotheses_of, read_cuts
from tests.export.models import MODEL, SEARCH, write_recipe, write_student
from tests.tasks.recipe import TEXTS


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def exp(recipe, monkeypatch):
    monkeypatch.chdir(recipe.folder)
    (recipe.folder / "decode.yaml").write_text(yaml.safe_dump(SEARCH["hybrid"]))
    folder = recipe.folder / "sparse"
    return (
        folder if folder.exists() else write_student(recipe, "hybrid", "0.8", "sparse")
    )


def test_measured(exp, recipe, tmp_path, capsys):
    plain = tmp_path / "plain"
    command = (
        f"--exp {exp} --model_file {MODEL} --output_dir {plain} --formats csr int8"
    )
    measuring = f" --data_dir {recipe.data} --inference_config decode.yaml --repeats 2"
    threads = torch.get_num_threads()
    main((command + measuring).split())
    assert torch.get_num_threads() == threads
    table = (plain / "export.md").read_text()
    assert capsys.readouterr().out.endswith(table)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["dense", "csr", "int8"]

    record = json.loads((plain / "export.json").read_text())
    measured = record["measured"]
    assert measured["utterances"] == 8 and measured["repeats"] == 2
    assert measured["audio_seconds"] == pytest.approx(5.35, abs=0.01)
    # The teacher stage decodes with the same search, so its WER is that of the table.
    shard = tmp_path / "hyps.jsonl"
    names = f"--teacher_config {plain}/config.yaml --teacher_model_file {plain}/{MODEL}"
    decode = f"{names} --data_dir {recipe.data} --inference_config decode.yaml"
    teacher_decode([*decode.split(), "--output_file", str(shard)])
    texts = {c.id: hypotheses_of(c)[0].text for c in read_cuts(shard)}
    references = {f"utt{n}": text for n, text in enumerate(TEXTS)}
    expected = score(references, texts).rate
    assert measured["forms"]["dense"]["wer"] == pytest.approx(expected)
    for form, each in measured["forms"].items():
        assert len(each["rtf_of_passes"]) == 2 and min(each["rtf_of_passes"]) > 0
        ratio, low, high = each["rtf_to_dense"]
        assert low <= ratio <= high and (form != "dense" or ratio == 1)
    assert measured["forms"]["csr"]["wer"] == measured["forms"]["dense"]["wer"]
    back = load_compressed(plain / record["forms"]["csr"]["file"])
    # The dense file has both names of renamed weights.
    state = named_as(back, torch.load(plain / MODEL))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_without_measuring(exp, tmp_path, capsys):
    main(f"--exp {exp} --model_file {MODEL} --output_dir {tmp_path}/plain".split())
    assert "RTF" not in capsys.readouterr().out
    assert "measured" not in json.loads((tmp_path / "plain/export.json").read_text())


def test_faults_are_one_line(exp, recipe, tmp_path):
    command = f"--exp {exp} --model_file {MODEL} --output_dir {tmp_path}/plain"
    with pytest.raises(SystemExit, match="^export: 2:4: .*two of each four neighbours"):
        main(f"{command} --formats 2:4".split())
    assert not list(tmp_path.iterdir())
    data = tmp_path / "data"
    data.mkdir()
    (data / "wav.scp").write_text((recipe.data / "wav.scp").read_text())
    with pytest.raises(SystemExit, match="data/text: no line for utterance utt0"):
        main(f"{command} --data_dir {data}".split())
