"""egs/wsj on a small copy of the corpus: the first paper's script, which goes through
run.sh, from the discs to the report.

Starting Python with ESPnet takes most of the time, so one run serves most tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_kd.tasks.asr import ASRKDTask
from tests.corpora import wsj_tree
from tests.recipes.running import REPO, run_script

RECIPE = REPO / "egs" / "wsj" / "asr1"
SMALL = (
    "--max_epoch 1 --num_iters_per_epoch 2 --batch_bins 50000 --num_workers 0 "
    "--use_tensorboard false --use_matplotlib false --keep_nbest_models 1 "
    "--encoder_conf hidden_size=8 --encoder_conf output_size=8 "
    "--decoder_conf hidden_size=8"
)
OPTIONS = {
    "--python": sys.executable,
    "--ngpu": "0",
    "--nj": "1",
    "--inference_nj": "1",
    "--test_sets": "test_dev93",
    "--local_data_opts": "--check_counts false",
    "--asr_args": SMALL,
    "--teacher_asr_args": SMALL,
    "--asr_tag": "student",
    "--teacher_exp": "exp/teacher",
    "--inference_config": "conf/small.yaml",
    "--teacher_inference_config": "conf/small.yaml",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """corpus/ and asr1/, the recipe after run_munim2018.sh with small models."""
    folder = tmp_path_factory.mktemp("wsj")
    # Compressed, as it is distributed, where the program that reads it is installed.
    wsj_tree.write_tree(folder / "corpus", shorten=bool(shutil.which("sph2pipe")))
    left_out = shutil.ignore_patterns("data", "dump", "exp")
    shutil.copytree(RECIPE, folder / "asr1", ignore=left_out)
    # After two updates the best hypothesis is empty, unless forbidden. The
    # teacher's search has no options beside its configuration.
    search = yaml.safe_load((RECIPE / "conf/munim2018/decode.yaml").read_text())
    search |= dict(beam_size=3, minlenratio=0.1, maxlenratio=0.2)
    (folder / "asr1" / "conf" / "small.yaml").write_text(yaml.safe_dump(search))
    run_script(
        folder / "asr1",
        ["./run_munim2018.sh", *(word for pair in OPTIONS.items() for word in pair)],
        WSJ0=str(folder / "corpus"),
        WSJ1=str(folder / "corpus"),
        NBESTS="2",
        STUDENTS="160",
    )
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_characters(folder):
    """Each unscored symbol is one token, as is every other character."""
    tokens = lines(folder / "asr1" / "data" / "en_token_list" / "char" / "tokens.txt")
    texts = " ".join(u.text for u in wsj_tree.SETS["train_si284"])
    for symbol in "<*IN*>", "<NOISE>":
        texts = texts.replace(symbol, "")
    special = {"<blank>", "<unk>", "<space>", "<sos/eos>", "<*IN*>", "<NOISE>"}
    assert set(tokens) == special | set(texts.replace(" ", ""))


def test_hypotheses_replace_references(folder):
    """Two of each utterance, of the same weight."""
    kd_set = folder / "asr1" / "dump" / "raw" / "train_si284_kd_nbest2"
    weights = dict(line.split() for line in lines(kd_set / "kd_weight"))
    totals: dict[str, list[float]] = {}
    for key, weight in weights.items():
        totals.setdefault(key.removesuffix("-kd2"), []).append(float(weight))
    assert totals and totals.keys() <= {u.id for u in wsj_tree.SETS["train_si284"]}
    for parts in totals.values():
        assert parts == pytest.approx([1 / len(parts)] * len(parts))
    assert max(map(len, totals.values())) == 2


def test_report(folder):
    """Teacher, student without and with KD; a noise is not a word of the reference."""
    student = folder / "asr1" / "exp" / "asr_student_kd_nbest2"
    report = json.loads((student / "report_test_dev93.json").read_text())
    names = [system["name"] for system in report["systems"]]
    assert names == ["teacher", "student", "student+KD"]
    assert lines(folder / "asr1" / report["ref"]) == [
        "4k0c0301 A DRY SPRING",
        "4k0c030a RATES FELL TO NINE -HYPHEN FOUR",
    ]
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert config["encoder"] == "rnn" and config["model_conf"]["ctc_weight"] == 0.0


def test_parameters():
    """The sizes in the configurations' comments, with 52 characters."""
    sizes = {}
    for config in (*RECIPE.glob("conf/*/las_*.yaml"), *RECIPE.glob("conf/train_*")):
        words = ["--config", str(config), "--token_type", "char"]
        args = ASRKDTask.get_parser().parse_args(words)
        args.token_list = [str(token) for token in range(52)]
        model = ASRKDTask.build_model(args)
        sizes[config.stem] = sum(p.numel() for p in model.parameters())
    millions = {name: round(size / 1e6, 1) for name, size in sizes.items()}
    assert millions == {
        "las_teacher": 20.9,
        "las_student_256": 5.3,
        "las_student_160": 2.1,
        "train_teacher": 27.1,
        "train_student": 2.8,
    }
    teacher = sizes["las_teacher"]
    assert round(teacher / sizes["las_student_256"], 1) == 3.9
    assert round(teacher / sizes["las_student_160"], 1) == 9.8


def test_a_missing_corpus_is_named(tmp_path):
    shutil.copytree(RECIPE, tmp_path / "asr1", ignore=shutil.ignore_patterns("data"))
    answer = subprocess.run(
        ["./run.sh", "--python", sys.executable, "--stop_stage", "1"],
        cwd=tmp_path / "asr1",
        env={**os.environ, "PYTHONPATH": str(REPO), "WSJ0": "nowhere"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode != 0
    assert "WSJ0='nowhere': folder not found" in answer.stderr
