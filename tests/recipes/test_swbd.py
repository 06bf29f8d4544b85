"""egs/swbd on a small copy of the corpora: the third paper's script and run.sh, from
the discs to the report and the scores by stm and glm.

Starting Python with ESPnet takes most of the time, so both run once for all tests, and
run.sh takes the data and a teacher from what the paper's script did.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_kd.report.eval2000 import Scorer
from espnet_kd.report.scoring import read_text
from tests.data import swbd_tree

REPO = Path(__file__).parents[2]
RECIPE = REPO / "egs" / "swbd" / "asr1"
SIZES = (
    "--encoder_conf output_size=8 --encoder_conf linear_units=8 "
    "--encoder_conf num_blocks=1 --decoder_conf linear_units=8 "
    "--decoder_conf num_blocks=1 --max_epoch 1 --num_iters_per_epoch 2 "
    "--batch_bins 50000 --num_workers 0 --use_amp false --use_tensorboard false "
    "--use_matplotlib false --keep_nbest_models 1 --specaug_conf apply_time_warp=false"
)
SEARCH = "--beam_size 2 --maxlenratio 0.2 --minlenratio 0.1"
OPTIONS = {
    "python": sys.executable,
    "ngpu": "0",
    "nj": "1",
    "inference_nj": "1",
    "nbpe": "38",
    "speed_perturb_factors": "",
    "local_data_opts": "--check_counts false --num_dev 3",
    "asr_args": SIZES,
    "teacher_asr_args": SIZES,
    "inference_args": SEARCH,
    "teacher_inference_config": "conf/small.yaml",
}


def run(folder: Path, script: str, *more: str, **variables: str) -> str:
    """A script of the recipe on the small corpora, with small models; what it says."""
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    answer = subprocess.run(
        [script, *words, *more],
        cwd=folder,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPO),
            "OMP_NUM_THREADS": "1",
            **variables,
        },
        capture_output=True,
        text=True,
    )
    logs = "".join(f"--- {p}\n{p.read_text()[-3000:]}" for p in folder.rglob("*.log"))
    assert answer.returncode == 0, answer.stdout + answer.stderr + logs
    return answer.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe's folder after run_yang2019.sh and run.sh."""
    folder = tmp_path_factory.mktemp("swbd")
    places = swbd_tree.write_tree(folder / "ldc")
    left_out = shutil.ignore_patterns("data", "dump", "exp")
    recipe = shutil.copytree(RECIPE, folder / "asr1", ignore=left_out)
    # The teacher's search takes no options beside its configuration.
    search = yaml.safe_load((RECIPE / "conf" / "decode.yaml").read_text())
    search |= dict(beam_size=2, maxlenratio=0.2, minlenratio=0.1)
    (recipe / "conf" / "small.yaml").write_text(yaml.safe_dump(search))
    some = dict(TEACHERS="conformer transformer", WEIGHTS="3 1", KDS="essence")
    run(recipe, "./run_yang2019.sh", **places, **some)
    trained = "exp/asr_yang2019_conformer"
    teacher = ("--teacher_asr_config", "", "--teacher_exp", trained)
    known = ("--asr_tag", "run", "--inference_tag", "decode", "--skip_stages", "5 6 9")
    run(recipe, "./run.sh", *teacher, *known, **places)
    return recipe


def test_word_pieces_hold_noises(recipe):
    tokens = (recipe / "data/en_token_list/bpe_unigram38/tokens.txt").read_text()
    assert {"[laughter]", "[noise]", "[vocalized-noise]"} <= set(tokens.split())


def test_one_statistics_run(recipe):
    """All models hear the same through the same front end."""
    assert len(list((recipe / "exp").glob("asr_stats*"))) == 1


def test_student_of_an_ensemble(recipe):
    student = recipe / "exp" / "asr_yang2019_student_kd_essence"
    config = yaml.safe_load((student / "config.yaml").read_text())
    names = [Path(path).parent.name for path in config["teacher_config"]]
    assert names == ["asr_yang2019_conformer", "asr_yang2019_transformer"]
    assert config["teacher_weight"] == [3.0, 1.0]
    (loss,) = config["kd_conf"]["losses"]
    assert loss["nodes"] == ["frames", "tokens"] and loss["k"] == 20
    assert config["frontend_conf"]["fs"] == "8k"


def test_report(recipe):
    """The usual report, on words without noises and hesitations."""
    student = recipe / "exp" / "asr_yang2019_student_kd_essence"
    report = json.loads((student / "report_eval2000.json").read_text())
    names = [system["name"] for system in report["systems"]]
    assert names == ["teacher", "teacher2", "student", "student+KD"]
    filtered = next(student.glob("*/eval2000/score_wer/ref.txt"))
    assert read_text(filtered)["en_4156-A_000110-000180"] == "yeah okay"


def test_scores_of_every_system_by_subset(recipe):
    table = (recipe / "exp" / "yang2019_eval2000.md").read_text()
    for title in ("swbd: 3 segments", "callhm: 4 segments", "all: 7 segments"):
        assert f"## {title}\n" in table
    systems = set(re.findall(r"^\| ([a-z_]+)", table, re.MULTILINE))
    assert systems == {"conformer", "transformer", "student", "student_kd_essence"}


def test_score_sh_scored_each_decoding(recipe):
    texts = sorted(recipe.glob("exp/*/*/eval2000/text"))
    assert len(texts) == 5  # four of the paper's script, one more of run.sh
    for text in texts:
        table = (text.parent / "score_wer" / "eval2000.md").read_text()
        data = recipe / "data" / "eval2000"
        found = Scorer(data / "stm", data / "glm")(read_text(text))["all"]
        assert f"{100 * found.rate:.2f}" in table.partition("## all")[2]


def test_run_sh(recipe):
    (report,) = recipe.glob("exp/asr_run_kd_essence/report_eval2000.json")
    names = [system["name"] for system in json.loads(report.read_text())["systems"]]
    assert names == ["teacher", "student+KD"]


def test_missing_corpus_is_named(tmp_path):
    shutil.copytree(RECIPE / "local", tmp_path / "local")
    shutil.copy(RECIPE / "db.sh", tmp_path / "db.sh")
    answer = subprocess.run(
        ["local/data.sh"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SWBD": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "EVAL2000='' is no folder" in answer.stderr
