"""kd.sh and the shim in ESPnet's own egs2/mini_an4, with its own asr.sh and audio.

The installed ESPnet is imported. It takes minutes: fifteen programs of
ESPnet start, each importing it anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from espnet_kd.report.scoring import read_text, score
from tests.recipes.espnet_recipes import copy_recipe, line_with_kd_sh
from tests.starts import FAST_START
from tests.tasks.recipe import KINDS

# The first test waits for the results that all of them check.
pytestmark = pytest.mark.timeout(3600)
SHIM = "python3 -m espnet_kd.shim"
FEW_UPDATES = dict(
    batch_type="unsorted",
    batch_size=2,
    max_epoch=1,
    num_iters_per_epoch=2,
    num_workers=0,
    num_att_plot=0,
    log_interval=1,
    use_tensorboard=False,
    use_matplotlib=False,
    keep_nbest_models=1,
)
CONFIGS = {
    "train_large": {
        **KINDS["hybrid"][1],
        **FEW_UPDATES,
        "best_model_criterion": [["valid", "acc", "max"]],
    },
    "train_transducer": {
        **KINDS["asr_transducer"][1],
        **FEW_UPDATES,
        "best_model_criterion": [["valid", "loss", "min"]],
    },
    "train_lm": {
        "lm_conf": {"nlayers": 1, "unit": 2},
        **FEW_UPDATES,
        "best_model_criterion": [["valid", "loss", "min"]],
    },
    "decode": {"beam_size": 2, "maxlenratio": 0.2, "lm_weight": 0.3},
    "decode_transducer": {"beam_size": 2},
}
# One model serves as teacher and student: what is tested is how files find each other.
KD = {
    "train_large_kd": (
        "train_large",
        "exp/asr_train_large_raw_en_bpe30/valid.acc.ave.pth",
        {"nodes": "tokens", "weight": 0.5},
    ),
    "train_transducer_kd": (
        "train_transducer",
        "exp/asr_train_transducer_raw_en_bpe30/valid.loss.ave.pth",
        {"nodes": "path", "weight": 0.5},
    ),
}
FEW_JOBS = "--ngpu 0 --nj 1 --inference_nj 1 --test_sets test"
LAB = (
    f"{FEW_JOBS} --asr_config conf/train_large.yaml --lm_config conf/train_lm.yaml "
    "--inference_config conf/decode.yaml"
)
LM_NAME = "lm_lm_train_lm_en_bpe30_valid.loss.ave"
DECODING = f"decode_{LM_NAME}_asr_model_valid.acc.ave"
TRANSDUCER = (
    f"{FEW_JOBS} --asr_task asr_transducer --use_lm false "
    "--inference_config conf/decode_transducer.yaml "
    "--inference_asr_model valid.loss.ave.pth"
)


class Lab(NamedTuple):
    """A recipe folder and the environment in which its scripts run."""

    folder: Path
    environment: dict[str, str]

    def sh(self, *words: str) -> str:
        """Output of a script; its failure fails the test, with the ends of the logs."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + "".join(self._logs())
        return done.stdout

    def _logs(self) -> Iterator[str]:
        for path in sorted(self.folder.rglob("*.log"), key=os.path.getmtime)[-3:]:
            yield f"--- {path}\n{path.read_text()[-2000:]}"

    def has_sclite(self) -> bool:
        return shutil.which("sclite", path=self.environment["PATH"]) is not None


@pytest.fixture(scope="module")
def lab(espnet_root: Path, tmp_path_factory) -> Lab:
    """mini_an4 after stages 1 to 13 of its own run.sh: data, an LM, a teacher."""
    top = tmp_path_factory.mktemp("espnet")
    copy_recipe(espnet_root, "mini_an4", top)
    lab = Lab(top / "egs2/mini_an4/asr1", _environment(top / "programs"))
    for name, config in CONFIGS.items():
        (lab.folder / f"conf/{name}.yaml").write_text(yaml.safe_dump(config))
    for name, (student, teacher, loss) in KD.items():
        config = dict(
            CONFIGS[student],
            teacher_config=[str(Path(teacher).with_name("config.yaml"))],
            teacher_model_file=[teacher],
            kd_conf={"losses": [loss]},
        )
        (lab.folder / f"conf/{name}.yaml").write_text(yaml.safe_dump(config))
    stages = "1", "--stop_stage", "13" if lab.has_sclite() else "12"
    # asr.sh appends its own numbers to --skip_stages without a blank.
    lab.sh("./run.sh", *LAB.split(), "--skip_stages", "8 ", "--stage", *stages)
    return lab


def _environment(programs: Path) -> dict[str, str]:
    """The installed Python first; a stand-in for sph2pipe of ESPnet's tools."""
    programs.mkdir()
    # AN4 is not compressed: libsndfile reads it.
    (programs / "sph2pipe").write_text(
        f"#!{sys.executable}\n"
        "import io, sys, soundfile\n"
        "audio, rate = soundfile.read(sys.argv[-1], dtype='int16')\n"
        "wav = io.BytesIO()\n"
        "soundfile.write(wav, audio, rate, format='WAV')\n"
        "sys.stdout.buffer.write(wav.getvalue())\n"
    )
    (programs / "sph2pipe").chmod(0o755)
    folders = [Path(sys.executable).parent, os.environ["PATH"], programs]
    folders.append("/usr/lib/sctk/bin")  # Debian's sclite
    return {
        **os.environ,
        "PATH": ":".join(map(str, folders)),
        "PYTHONPATH": f"{FAST_START}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that is not a link."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


class Dropped(NamedTuple):
    """The recipe before and after kd.sh, and the output of kd.sh."""

    lab: Lab
    before: dict[str, tuple[int, int]]
    output: str


@pytest.fixture(scope="module")
def dropped(lab: Lab) -> Dropped:
    """kd.sh under the lab's own run.sh line: stages 6 to 14, no student without KD."""
    before = state(lab.folder)
    module = ("python3", "-m", "espnet_kd.bin.install_recipe")
    lab.sh(*module, ".")
    lab.sh("bash", "-c", line_with_kd_sh())
    options = (
        f"{LAB} --stage 6 --skip_stages 9 --asr_tag small --kd_config "
        "conf/kd/sequence.yaml --teacher_exp exp/asr_train_large_raw_en_bpe30"
    )
    output = lab.sh("bash", "run_kd.sh", *options.split())
    (lab.folder / "run_kd.sh").unlink()
    return Dropped(lab, before, output)


def test_what_asr_sh_made_is_untouched(dropped: Dropped):
    after = state(dropped.lab.folder)
    assert {name: after.get(name) for name in dropped.before} == dropped.before
    new = {"/".join(name.split("/")[:3]) for name in after.keys() - dropped.before}
    new = {name for name in new if not name.startswith("exp/asr_small_kd_sequence/")}
    assert new == {
        "dump/raw/train_nodev_kd_sequence",
        "dump/raw/train_nodev_kd_sequence_shapes",
        "exp/teacher_decode/asr_train_large_raw_en_bpe30",
    }


def test_the_students_text_is_asr_shs(dropped: Dropped):
    """Found by asr.sh's own rules: token list, statistics, LM, names of folders."""
    student = dropped.lab.folder / "exp/asr_small_kd_sequence"
    config = yaml.safe_load((student / "config.yaml").read_text())
    stats = "exp/asr_stats_raw_en_bpe30"
    assert config["normalize_conf"]["stats_file"] == f"{stats}/train/feats_stats.npz"
    assert config["bpemodel"] == "data/en_token_list/bpe_unigram30/bpe.model"
    log = (student / DECODING / "asr_stage12.log").read_text()
    assert "Stage 12: Decoding: training_dir=exp/asr_small_kd_sequence" in log
    command = (student / DECODING / "test/logdir/asr_inference.1.log").read_text()
    assert "--lm_file exp/lm_train_lm_en_bpe30/valid.loss.ave.pth" in command
    assert len((student / DECODING / "test/text").read_text().splitlines()) == 2
    report = json.loads((student / "report_test.json").read_text())
    assert [each["name"] for each in report["systems"]] == ["teacher", "student+KD"]


def test_a_decoding_of_asr_sh_is_reused(dropped: Dropped):
    exp = dropped.lab.folder / "exp"
    name = "asr_train_large_raw_en_bpe30"
    theirs = exp / name / DECODING / "test/text"
    ours = exp / "teacher_decode" / name / DECODING / "test/text"
    assert ours.read_text() == theirs.read_text()
    assert (
        f"{theirs.relative_to(exp.parent)}: already decoded by asr.sh" in dropped.output
    )


@pytest.mark.parametrize("system", ["teacher", "student"])
def test_sclite_and_our_scorer_agree(dropped: Dropped, system: str):
    if not dropped.lab.has_sclite():
        pytest.skip("sclite is not installed (Debian: apt install sctk)")
    exp = dropped.lab.folder / "exp"
    name = "asr_train_large_raw_en_bpe30"
    theirs, ours = {
        "teacher": (exp / name, exp / "teacher_decode" / name),
        "student": (exp / "asr_small_kd_sequence",) * 2,
    }[system]
    table = (theirs / DECODING / "test/score_wer/result.txt").read_text()
    row = re.search(r"\| *Sum/Avg *\|([^|]*)\|([^|]*)\|", table)
    sentences, words = map(int, row[1].split())
    _, *parts, errors, _ = map(float, row[2].split())
    text = "dump/raw/test/text", ours.relative_to(exp.parent) / DECODING / "test/text"
    pair = [read_text(exp.parent / path) for path in text]
    counts = score(*pair, scorer="sclite").totals
    assert (len(pair[0]), counts[3]) == (sentences, words)
    assert 100 * counts[:3] / words == pytest.approx(parts, abs=0.051)
    result = json.loads((ours / DECODING / "test/score_wer/result.json").read_text())
    assert 100 * result["systems"][0]["rate"] == pytest.approx(errors, abs=0.051)


def test_one_line_without_our_scripts(lab: Lab):
    """./run.sh --stage 11 --asr_config ... --python "python3 -m espnet_kd.shim"."""
    stage = ("--stage", "11", "--stop_stage", "11", "--python", SHIM)
    lab.sh("./run.sh", *LAB.split(), "--asr_config", "conf/train_large_kd.yaml", *stage)
    log = (lab.folder / "exp/asr_train_large_kd_raw_en_bpe30/train.log").read_text()
    assert re.search(r"epoch:train:.*loss_kd_tokens=\d", log)


@pytest.fixture(scope="module")
def transducer(lab: Lab) -> Lab:
    """The recipe with a teacher of the other task, which needs our stand-in."""
    stage = ("--stage", "11", "--stop_stage", "11", "--python", SHIM)
    options = (*TRANSDUCER.split(), "--asr_config", "conf/train_transducer.yaml")
    lab.sh("./run.sh", *options, *stage)
    return lab


def test_transducers_one_line(transducer: Lab):
    stage = ("--stage", "11", "--stop_stage", "11", "--python", SHIM)
    options = (*TRANSDUCER.split(), "--asr_config", "conf/train_transducer_kd.yaml")
    transducer.sh("./run.sh", *options, *stage)
    exp = transducer.folder / "exp/asr_train_transducer_kd_raw_en_bpe30"
    assert re.search(r"epoch:train:.*loss_kd_path=\d", (exp / "train.log").read_text())


def test_transducers_kd_sh(transducer: Lab, dropped: Dropped):
    """A teacher that asr.sh has not decoded is decoded into a folder of ours."""
    before = state(transducer.folder)
    options = (
        f"{TRANSDUCER} --lang en --train_set train_nodev --valid_set train_dev "
        "--teacher_exp exp/asr_train_transducer_raw_en_bpe30 --teacher_model "
        "valid.loss.ave.pth --asr_config conf/train_transducer.yaml --asr_tag rnnt "
        "--kd_config conf/kd/one_best_path.yaml --stage 8 --skip_stages"
    )
    transducer.sh("./kd.sh", *options.split(), "9 13")
    after = state(transducer.folder)
    assert {name: after.get(name) for name in before} == before
    name = "decode_transducer_asr_model_valid.loss.ave/test/text"
    exp = transducer.folder / "exp"
    for folder in (
        "asr_rnnt_kd_one_best_path",
        "teacher_decode/asr_train_transducer_raw_en_bpe30",
    ):
        assert len((exp / folder / name).read_text().splitlines()) == 2
    log = (exp / "asr_rnnt_kd_one_best_path/train.log").read_text()
    assert re.search(r"epoch:train:.*loss_kd_path=\d", log)


def test_undone(dropped: Dropped):
    module = ("python3", "-m", "espnet_kd.bin.install_recipe")
    dropped.lab.sh(*module, ".", "--undo")
    assert not (dropped.lab.folder / "kd.sh").is_symlink()
    assert not (dropped.lab.folder / "conf/kd").is_symlink()
