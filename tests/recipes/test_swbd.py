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

from espnet_kd.report.sclite import find_sclite
from espnet_kd.report.scoring import read_text
from espnet_kd.report.stm_scoring import Scorer
from tests.corpora import swbd_tree
from tests.recipes.running import NO_STAGE, REPO, run_script
from tests.tasks.recipe import merged

RECIPE = REPO / "egs" / "swbd" / "asr1"
SHORT = dict(
    max_epoch=1,
    num_iters_per_epoch=2,
    batch_bins=50000,
    num_workers=0,
    use_amp=False,
    use_tensorboard=False,
    use_matplotlib=False,
    keep_nbest_models=1,
    specaug_conf=dict(apply_time_warp=False),
)
# By the kind of encoder or decoder. Three layers: the BLSTM's second and third halve.
SMALL = {
    "encoder": {
        "conformer": dict(output_size=8, linear_units=8, num_blocks=1),
        "rnn": dict(output_size=8, hidden_size=8, num_layers=3),
    },
    "decoder": {
        "transformer": dict(linear_units=8, num_blocks=1),
        "rnn": dict(hidden_size=8, att_conf=dict(adim=8, aconv_chans=2, aconv_filts=3)),
    },
}
needs_sclite = pytest.mark.skipif(
    find_sclite() is None, reason="sclite is not installed (apt install sctk)"
)
SEARCH = dict(beam_size=2, maxlenratio=0.2, minlenratio=0.1)
ENSEMBLE = "conformer_blstm_3_1"
STUDENT = f"exp/asr_yang2019_student_kd_essence_{ENSEMBLE}"
OPTIONS = {
    "ngpu": "0",
    "nj": "1",
    "inference_nj": "1",
    "nbpe": "38",
    "speed_perturb_factors": "",
    "local_data_opts": "--check_counts false --num_dev 3",
}


def options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


def run(folder: Path, script: str, *more: str, **variables: str) -> str:
    """The output of a script of the recipe."""
    return run_script(folder, [script, *options(OPTIONS), *more], **variables)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe's folder after run_yang2019.sh and run.sh."""
    folder = tmp_path_factory.mktemp("swbd")
    places = swbd_tree.write_tree(folder / "ldc")
    recipe = copy_recipe(folder / "asr1")
    for path in recipe.glob("conf/train_*.yaml"):
        make_small(path)
    for name in ("conformer", "blstm", "student"):
        make_small(recipe / "conf" / "yang2019" / f"train_{name}.yaml")
    change(recipe / "conf" / "decode.yaml", SEARCH)
    # Results of an earlier run with another teacher are not reported.
    other = recipe / "exp" / "asr_yang2019_transformer" / "decode" / "eval2000"
    other.mkdir(parents=True)
    (other / "text").write_text("")
    some = dict(TEACHERS="conformer blstm", WEIGHTS="3 1", KDS="essence")
    if find_sclite() is None:  # then all but the scores by the stm
        (recipe / "local" / "score.sh").unlink()
        with pytest.raises(AssertionError, match="score_eval2000: sclite: not found"):
            run(recipe, "./run_yang2019.sh", **places, **some)
    else:
        run(recipe, "./run_yang2019.sh", **places, **some)
    # Statistics and a teacher exist; only the student with KD is trained. The
    # scores by the stm are tested above.
    known = {
        "asr_stats_dir": "exp/asr_stats_yang2019",
        "teacher_asr_config": "",
        "teacher_exp": "exp/asr_yang2019_conformer",
        "asr_tag": "run",
        "inference_tag": "decode",
        "skip_stages": "4 5 6 9 13",
    }
    run(recipe, "./run.sh", *options(known))
    return recipe


def copy_recipe(folder: Path) -> Path:
    left_out = shutil.ignore_patterns("data", "dump", "exp")
    return shutil.copytree(RECIPE, folder, ignore=left_out)


def change(path: Path, values: dict) -> None:
    """Put other values into a configuration."""
    changed = merged(yaml.safe_load(path.read_text()), values)
    path.write_text(yaml.safe_dump(changed))


def make_small(path: Path) -> None:
    """A small model, and two updates."""
    config = yaml.safe_load(path.read_text())
    sizes = {f"{part}_conf": kinds[config[part]] for part, kinds in SMALL.items()}
    change(path, {**SHORT, **sizes})


def test_word_pieces_hold_noises(recipe):
    tokens = (recipe / "data/en_token_list/bpe_unigram38/tokens.txt").read_text()
    assert {"[laughter]", "[noise]", "[vocalized-noise]"} <= set(tokens.split())


def test_one_statistics_run(recipe):
    """All models read the same audio through the same front end; not run.sh's folder,
    whose other options would remake the statistics and so refuse the trainings."""
    names = [path.name for path in (recipe / "exp").glob("asr_stats*")]
    assert names == ["asr_stats_yang2019"]


def test_student_of_an_ensemble(recipe):
    """Named after it, as it is not the whole one; its encoders' lengths differ."""
    config = yaml.safe_load((recipe / STUDENT / "config.yaml").read_text())
    names = [Path(path).parent.name for path in config["teacher_config"]]
    assert names == ["asr_yang2019_conformer", "asr_yang2019_blstm"]
    assert config["teacher_weight"] == [3.0, 1.0]
    (loss,) = config["kd_conf"]["losses"]
    assert loss["nodes"] == ["frames", "tokens"] and loss["k"] == 20
    assert config["frontend_conf"]["fs"] == "8k"


def test_report(recipe):
    """The usual report, on words without noises and hesitations."""
    student = recipe / STUDENT
    report = json.loads((student / "report_eval2000.json").read_text())
    names = [system["name"] for system in report["systems"]]
    assert names == ["teacher", "teacher2", "student", "student+KD"]
    filtered = next(student.glob("*/eval2000/score_wer/ref.txt"))
    assert read_text(filtered)["en_4156-A_000110-000180"] == "yeah okay"


@needs_sclite
def test_scores_of_every_system_by_subset(recipe):
    table = (recipe / "exp" / f"yang2019_eval2000_{ENSEMBLE}.md").read_text()
    for title in ("swbd: 3 segments", "callhm: 4 segments", "all: 7 segments"):
        assert f"## {title}\n" in table
    systems = set(re.findall(r"^\| ([a-z]\w+)", table, re.MULTILINE))
    taught = f"student_kd_essence_{ENSEMBLE}"
    assert systems == {"conformer", "blstm", "student", taught}


@needs_sclite
def test_score_sh_scored_each_decoding(recipe):
    tables = sorted(recipe.glob("exp/*/*/eval2000/score_wer/eval2000.md"))
    assert len(tables) == 4
    for path in tables:
        table = path.read_text()
        data = recipe / "data" / "eval2000"
        text = read_text(path.parents[1] / "text")
        found = Scorer(data / "stm", data / "glm")(text)["all"]
        assert f"{100 * found.rate:.2f}" in table.partition("## all")[2]


def test_run_sh(recipe):
    (report,) = recipe.glob("exp/asr_run_kd_essence/report_eval2000.json")
    names = [system["name"] for system in json.loads(report.read_text())["systems"]]
    assert names == ["teacher", "student+KD"]


def test_nothing_to_report(tmp_path):
    recipe = copy_recipe(tmp_path / "asr1")
    run(recipe, "./run_yang2019.sh", *NO_STAGE, PYTHON=f"env {sys.executable}")
    assert not (recipe / "exp").exists()


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
    assert "EVAL2000='': folder not found" in answer.stderr
