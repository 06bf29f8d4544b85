"""``python -m espnet_kd.bin.report`` on files, as called by recipes."""

import json
import os
import shutil
import sys

import pytest
import torch

from espnet_kd.bin import report
from espnet_kd.data.files import write_whole
from tests.tasks.recipe import Recipe

REF = "a one two three\nb four five\nc six\n"


@pytest.fixture
def exp(tmp_path):
    files = {
        "ref": REF,
        "teacher": REF,
        "student_1": "a one two\nb four nine\nc\n",
        "student_2": "a one two\nb four five\nc\n",
        "kd": "a one two three\nb four five\nc seven\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    torch.save({"w": torch.zeros(40, 100)}, tmp_path / "teacher.pth")
    torch.save({"w": torch.zeros(4, 100)}, tmp_path / "student.pth")
    return tmp_path


def main(words: list[str]) -> int:
    """The exit code of the command, whose message goes to stderr, as in a shell."""
    try:
        return report.main(words)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        return 1


def options(exp, *more: object) -> list[str]:
    given = ["--ref", exp / "ref", "--hyp", "teacher", exp / "teacher"]
    given += ["--hyp", "student", exp / "student_1", exp / "student_2"]
    given += ["--hyp", "student+kd", exp / "kd", "--resamples", 200, *more]
    return [str(option) for option in given]


def test_table_json_and_plot(exp, capsys):
    models = []
    for name, path in ("teacher", "teacher"), ("student", "student"):
        models += ["--model", name, exp / f"{path}.pth"]
    roles = ["--teacher", "teacher", "--baseline", "student"]
    output = exp / "report" / "test.md"
    assert main(options(exp, *models, *roles, "--output", output)) == 0
    table = output.read_text()
    assert capsys.readouterr().out == table
    lines = [
        [c.strip() for c in line.split("|")[1:-1]] for line in table.split("\n")[:5]
    ]
    cells = {row[0]: dict(zip(lines[0], row)) for row in lines[2:]}
    student = cells["student (baseline)"]
    assert student["WER %"] == "41.67"  # (3 + 2) errors / (2 x 6) words
    assert student["S / D / I %"] == "8.33 / 33.33 / 0.00"
    assert student["Spread"] == "16.67" and student["Compression"] == "10.0x"
    assert cells["student+kd"]["WER %"] == "16.67"
    assert cells["student+kd"]["WER reduction %"] == "60.0"

    stored = json.loads(output.with_suffix(".json").read_text())
    assert [s["name"] for s in stored["systems"]] == [
        "teacher",
        "student",
        "student+kd",
    ]
    assert stored["systems"][1]["rate"] == pytest.approx(5 / 12)
    assert stored["roles"]["baseline"] == "student"
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(os.listdir(output.parent)) == 3  # no temporary file is left


@pytest.fixture
def models(exp):
    """Options: a dense teacher and sparse students; one has an ESPnet configuration."""
    recipe = Recipe(exp)
    config, checkpoint = recipe.teacher("asr_transducer")
    state = torch.load(checkpoint)
    for name, weight in state.items():
        if "weight" in name and weight.dim() > 1 and "embed" not in name:
            weight.view(-1)[: weight.numel() // 2] = 0
    (exp / "half").mkdir()
    shutil.copy(config, exp / "half" / "config.yaml")
    torch.save(state, exp / "half" / "m.pth")
    torch.save({"w": torch.tensor([[0.0, 0, 0, 1]])}, exp / "student.pth")
    paths = {"teacher": checkpoint, "student": exp / "half" / "m.pth"}
    paths["student+kd"] = exp / "student.pth"
    return [x for name, path in paths.items() for x in ("--model", name, path)]


def test_sparse_systems(exp, models, capsys):
    output = exp / "report" / "test.md"
    curves = ["--curve", "plain", "student", "teacher", "--curve", "kd"]
    curves += ["student+kd", "teacher"]
    assert main(options(exp, *models, *curves, "--output", output)) == 0
    text = output.read_text()
    assert capsys.readouterr().out == text
    table, *more = text.split("\n## ")
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table.split("\n")]
    cells = {row[0]: dict(zip(lines[0], row)) for row in lines[2:5]}
    assert [cells[name]["Sparsity %"] for name in cells][::2] == ["0.0", "75.0"]
    assert 40 < float(cells["student"]["Sparsity %"]) < 50
    assert cells["teacher"]["Compressed, MB"] == cells["teacher"]["Size, MB"]
    operations = [float(cells[n]["Multiply-adds, M/s"]) for n in ("teacher", "student")]
    assert operations[1] < operations[0]
    assert cells["student+kd"]["Multiply-adds, M/s"] == ""
    assert [part.split("\n")[0] for part in more] == [
        "Layers of student",
        "Layers of student+kd",
    ]

    stored = json.loads(output.with_suffix(".json").read_text())
    teacher, student, kd = (system["weights"] for system in stored["systems"])
    assert teacher["sparsity"] == 0 and student["layers"][-1]["sparsity"] > 0
    assert student["total"]["dense"] == teacher["total"]["dense"] > 0
    assert student["total"]["nonzero"] < student["total"]["dense"]
    assert kd["layers"][0] == {
        "name": "w",
        "shape": [1, 4],
        "zeros": 3,
        "sparsity": 0.75,
        "bytes": 16,
        "compressed_bytes": 1 + 4,
        "multiply_adds": None,
    }
    plot = output.with_name("test_sparsity.png").read_bytes()
    assert plot.startswith(b"\x89PNG\r\n")
    assert len(os.listdir(output.parent)) == 4


def test_without_zeros_sparsity_is_not_reported(exp, capsys):
    torch.save({"w": torch.ones(4, 100)}, exp / "student.pth")
    model = ["--model", "student", exp / "student.pth"]
    curve = ["--curve", "flat", "student", "--output", exp / "out" / "r.md"]
    assert main(options(exp, *model)) == 0
    table = capsys.readouterr().out
    assert "Size, MB" in table
    for word in ("Sparsity", "Compressed", "Multiply", "Layers of"):
        assert word not in table
    assert main(options(exp, *model, *curve)) == 0
    assert capsys.readouterr().out == table
    assert "weights" not in (exp / "out" / "r.json").read_text()
    assert (exp / "out" / "r_sparsity.png").exists()


def test_the_same_seed_gives_the_same_report(exp, capsys):
    texts = []
    for seed in (1, 1, 2):
        main(options(exp, "--baseline", "student", "--seed", seed))
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_without_models_there_is_no_plot(exp):
    assert main(options(exp, "--output", exp / "out" / "r.md")) == 0
    assert sorted(os.listdir(exp / "out")) == ["r.json", "r.md"]


def test_character_error_rate(exp, capsys):
    assert main(options(exp, "--unit", "char")) == 0
    table = capsys.readouterr().out
    assert "CER %" in table and "WER" not in table


def test_missing_utterances_stop_the_report(exp, capsys):
    (exp / "kd").write_text("a one two three\nc seven\n")
    assert main(options(exp, "--output", exp / "r.md")) == 1
    message = capsys.readouterr().err
    assert str(exp / "kd") in message and "have no hypothesis: b" in message
    assert not (exp / "r.md").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--baseline", "studnet"], "studnet is not a system"),
        (["--model", "other", "x.pth"], "--hyp other is missing"),
        (["--hyp", "lonely"], "--hyp lonely: needs a name and at least one text"),
        (["--hyp", "absent", "no/such/text"], "no/such/text"),
        (["--curve", "kd", "student"], "--curve: the plot is written beside"),
        (["--curve", "kd", "--output", "x"], "--curve kd: needs a label and at least"),
        (["--curve", "kd", "sparse", "--output", "x"], "kd: --hyp sparse is missing"),
        (["--curve", "a", "student", "--output", "x"], "--model student is missing"),
        (["--confidence", "95"], "--confidence must be between 0 and 1"),
    ],
)
def test_wrong_options_are_named(exp, capsys, more, message):
    assert main(options(exp, *more)) == 1
    assert message in capsys.readouterr().err


class TestExperiments:
    """--system: tables of decodings by kd.sh."""

    ROLES = ("--teacher", "teacher", "--baseline", "student", "--resamples", "200")

    @pytest.fixture
    def recipe(self, exp, monkeypatch):
        """A teacher, two runs of a student and one of another, on two sets."""
        texts = {"t": "teacher", "s0": "student_1", "s1": "student_2", "kd": "kd"}
        for set_name in ("test", "org/dev"):
            for name, text in texts.items():
                folder = exp / "exp" / name / "decode" / set_name
                folder.mkdir(parents=True)
                shutil.copy(exp / text, folder / "text")
                model = "teacher" if name == "t" else "student"
                shutil.copy(exp / f"{model}.pth", exp / "exp" / name / "m.pth")
            (exp / "dump/raw" / set_name).mkdir(parents=True)
            (exp / "dump/raw" / set_name / "text").write_text(REF)
        monkeypatch.chdir(exp)
        return exp

    def report(self, *more: str) -> int:
        systems = ["--system", "teacher", "exp/t", "--system", "student", "exp/s0"]
        systems += ["exp/s1", "--system", "student+kd", "exp/kd"]
        return main([*systems, "--inference_asr_model", "m.pth", *self.ROLES, *more])

    def test_a_table_for_each_set(self, recipe, capsys):
        assert self.report("--output", "exp/all_{set}.md") == 0
        printed = capsys.readouterr().out
        for set_name in ("test", "org_dev"):
            table = (recipe / f"exp/all_{set_name}.md").read_text()
            assert f"{set_name.replace('_', '/')}:\n\n{table}" in printed
            assert (recipe / f"exp/all_{set_name}.png").exists()
        stored = json.loads((recipe / "exp/all_test.json").read_text())
        assert stored["ref"] == "dump/raw/test/text"
        systems = {system["name"]: system for system in stored["systems"]}
        assert systems["student"]["run_rates"] == [pytest.approx(x / 6) for x in (3, 2)]
        assert systems["student"]["compression"] == pytest.approx(10)
        assert systems["student+kd"]["rate"] == pytest.approx(1 / 6)

    def test_systems_without_a_decoding_are_named_and_left_out(
        self, recipe, capsys, caplog
    ):
        shutil.rmtree(recipe / "exp/t/decode/test")
        shutil.rmtree(recipe / "exp/s0/decode/org")
        shutil.rmtree(recipe / "exp/s1/decode/org")
        curve = ("--curve", "line", "teacher", "student+kd")
        assert self.report("--output", "exp/all_{set}.md", *curve) == 0
        assert "--system teacher: exp/t/decode/test/text: not found" in caplog.text
        assert "--system student: exp/s0/decode/org/dev/text: not" in caplog.text
        names, roles = {}, {}
        for set_name in ("test", "org_dev"):
            stored = json.loads((recipe / f"exp/all_{set_name}.json").read_text())
            names[set_name] = [system["name"] for system in stored["systems"]]
            roles[set_name] = stored["roles"]
        assert names["test"] == ["student", "student+kd"]
        assert names["org_dev"] == ["teacher", "student+kd"]
        assert roles["test"]["teacher"] is None
        assert roles["test"]["baseline"] == "student"
        assert roles["org_dev"]["teacher"] == "teacher"
        assert roles["org_dev"]["baseline"] is None

    def test_nothing_is_decoded(self, recipe, capsys, caplog):
        words = ("--inference_tag", "other", "--output", "exp/all.md")
        assert self.report(*words) == 0
        assert "nothing is decoded" in caplog.text and "exp/s1/other" in caplog.text
        assert not (recipe / "exp/all.md").exists()

    def test_a_missing_run(self, recipe, capsys):
        (recipe / "exp/s1/decode/test/text").unlink()
        assert self.report("--output", "exp/all_{set}.md") == 1
        message = "--system student: exp/s1/decode/test/text: not found, but other runs"
        assert message in capsys.readouterr().err
        assert not list(recipe.glob("exp/all*"))

    @pytest.mark.parametrize(
        "more, message",
        [
            (("--output", "exp/all.md"), "put {set} into the name"),
            (("--system", "lonely"), "--system lonely: needs a name and at least"),
            (("--system", "teacher", "exp/kd"), "--system teacher: occurs twice"),
            (
                ("--baseline", "studnet"),
                "--baseline studnet: --system studnet is missing",
            ),
            (("--ref", "ref"), "--ref, --model: only used with --hyp"),
            (("--model", "teacher", "m.pth"), "--ref, --model: only used with --hyp"),
            (("--curve", "a", "b", "--output", "x{set}"), "--system b is missing"),
        ],
    )
    def test_wrong_options_are_named(self, recipe, capsys, more, message):
        assert self.report(*more) == 1
        assert message in capsys.readouterr().err

    def test_systems_are_named_in_one_way(self, recipe, capsys):
        assert self.report("--hyp", "kd", "kd") == 1
        assert "not allowed with argument --system" in capsys.readouterr().err
        assert main(["--hyp", "kd", "kd"]) == 1
        assert "--ref: the references are needed" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path):
    def fail(part):
        part.write_text("half")
        raise OSError("disk full")

    (tmp_path / "r.md").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "r.md", fail)
    assert os.listdir(tmp_path) == ["r.md"]
    assert (tmp_path / "r.md").read_text() == "old"
