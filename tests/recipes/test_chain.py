"""The whole chain of kd.sh, stages 2 to 14, with real ESPnet on seconds of audio.

Starting Python with ESPnet takes most of the time, so one run serves every test.
"""

import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_kd.models.espnet_versions import installed_version
from tests.starts import REPO, environment

RATE = 8000
# A checkpoint.pth of ours, on any torch.
UNSAFE = {} if torch.__version__ < "1.13" else {"weights_only": False}
WORDS = ["ab", "bca d", "cab", "d ab", "a bcd", "dd a"]
CONFIG = dict(
    frontend_conf=dict(n_fft=128, hop_length=64, n_mels=8),
    encoder="transformer",
    encoder_conf=dict(output_size=8, attention_heads=1, linear_units=8, num_blocks=1),
    decoder="transformer",
    decoder_conf=dict(attention_heads=1, linear_units=8, num_blocks=1),
    model_conf=dict(ctc_weight=0.5, report_cer=False, report_wer=False),
    batch_type="unsorted",
    batch_size=3,
    max_epoch=1,
    num_iters_per_epoch=2,
    optim="sgd",
    best_model_criterion=[["valid", "loss", "min"]],
    keep_nbest_models=1,
    num_workers=0,
    num_att_plot=0,
    use_tensorboard=False,
    use_matplotlib=False,
)
SPARSE = dict(
    kd_conf=dict(
        losses=[dict(nodes=["frames", "tokens"], weight=0.1)],
        pruning=dict(sparsity=0.6, end=2, every=1),
    ),
    training=dict(max_epoch=2),
)
DECODING = "beam_size: 3\nminlenratio: 0.15\nmaxlenratio: 0.3\n"
# The student is its own teacher: three trainings and decodings are enough.
OPTIONS = """--ngpu 0 --nj 1 --inference_nj 1 --fs 8k --token_type char --lang en
    --train_set train --unlabelled_set more --valid_set dev --test_sets dev
    --speed_perturb_factors 1.0|1.1 --use_lm false
    --asr_config conf/train.yaml --asr_tag small --teacher_asr_config conf/train.yaml
    --teacher_exp exp/asr_small --teacher_nbest 2 --kd_config conf/sequence.yaml
    --teacher_model valid.loss.ave.pth --inference_asr_model valid.loss.ave.pth
    --sparse_config conf/sparse.yaml --sparse_args --seed|3
    --inference_config conf/decode.yaml --teacher_inference_config conf/decode.yaml"""


def write_data(folder: Path, number: int, labelled: bool = True) -> None:
    """A Kaldi folder of tones in noise."""
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    tables: dict[str, list[str]] = {"wav.scp": [], "utt2spk": [], "text": []}
    for n in range(number):
        name = f"{folder.name}{n}"
        time = np.arange(int(RATE * (0.6 + 0.05 * n))) / RATE
        wave = 0.2 * np.sin(2 * np.pi * 200 * (n + 1) * time)
        wave += 0.05 * rng.standard_normal(len(wave))
        soundfile.write(folder / f"{name}.wav", wave, RATE)
        tables["wav.scp"].append(f"{name} {folder / name}.wav\n")
        tables["utt2spk"].append(f"{name} {name}\n")
        tables["text"].append(f"{name} {WORDS[n]}\n")
    for name, lines in tables.items():
        if labelled or name != "text":
            (folder / name).write_text("".join(lines))


def kd_process(folder: Path, *options: str, **variables: str) -> subprocess.Popen:
    """kd.sh with the options of this file and more."""
    words = [word.replace("|", " ") for word in OPTIONS.split()]
    return subprocess.Popen(
        ["./kd.sh", "--python", sys.executable, *words, *options],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """As from a terminal: what a script starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kd(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """The same until it has ended."""
    with kd_process(folder, *options, **variables) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(options, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe folder after stages 2 to 14."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "kd.sh").symlink_to(REPO / "egs" / "TEMPLATE" / "asr1" / "kd.sh")
    (folder / "conf").mkdir()
    (folder / "conf" / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "conf" / "decode.yaml").write_text(DECODING)
    (folder / "conf" / "sparse.yaml").write_text(yaml.safe_dump(SPARSE))
    (folder / "conf" / "sequence.yaml").write_bytes(
        (REPO / "conf" / "kd" / "sequence.yaml").read_bytes()
    )
    for name, number in (("train", 5), ("more", 3), ("dev", 3)):
        write_data(folder / "data" / name, number, labelled=name != "more")
    answer = kd(folder, "--stage", "2")
    logs = "".join(
        f"--- {path}\n{path.read_text()[-3000:]}" for path in folder.rglob("*.log")
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr + logs
    return folder


def table(path: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def test_a_chain_that_is_done(recipe: Path):
    """A dry run says so and writes nothing; a run takes seconds."""
    before = {path: path.lstat().st_mtime_ns for path in recipe.rglob("*")}
    answer = kd(recipe, "--stage", "2", "--dry_run", "true")
    assert answer.returncode == 0, answer.stderr
    done = re.findall(r"^ ?(\d+) .*  done\b", answer.stdout, re.M)
    assert done == ["2", "3", "4", "5", "6", "8", "9", "10", "11", "12", "13", "14"]
    assert {path: path.lstat().st_mtime_ns for path in recipe.rglob("*")} == before
    answer = kd(recipe, "--stage", "9", "--dry_run", "true", "--kd_args", "--seed 7")
    assert answer.returncode == 1
    assert "exp/asr_small_kd_sequence holds a training with other" in answer.stderr
    rows = dict(re.findall(r"^ ?(\d+) .*  (done|will run)\b", answer.stdout, re.M))
    assert (rows["9"], rows["10"]) == ("done", "will run")


def test_a_chain_that_is_done_takes_seconds(recipe: Path):
    """Its last lines name report and figure, relative to the user's folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = kd(recipe, "--stage", "2")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0, answer.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 4
    report = "exp/asr_small_sparse_seed3/report_dev"
    assert answer.stdout.splitlines()[-2:] == [f"{report}.md", f"{report}.png"]
    stages = ("--stage", "14", "--stop_stage", "14")
    answer = kd(recipe, *stages, STARTED_IN=str(recipe.parent))
    last = answer.stdout.splitlines()[-2:]
    assert last == [f"{recipe.name}/{report}.{kind}" for kind in ("md", "png")]


def test_perturbed_names(recipe: Path):
    ids = set(table(recipe / "dump" / "raw" / "train_sp" / "wav.scp"))
    assert ids == {f"{sp}train{n}" for sp in ("", "sp1.1-") for n in range(5)}
    assert (recipe / "exp" / "asr_stats_raw_en_char_sp" / "train").is_dir()
    # The teacher reads the same audio through the same frontend: one statistics run.
    assert len(list((recipe / "exp").glob("asr_stats*"))) == 1


def test_kd_set(recipe: Path):
    kd_set = recipe / "dump" / "raw" / "train_sp_kd_sequence"
    weights = {key: float(value) for key, value in table(kd_set / "kd_weight").items()}
    assert weights.keys() == table(kd_set / "wav.scp").keys()
    totals: dict[str, float] = {}
    for key, weight in weights.items():
        utterance = re.sub("-kd2$", "", key)
        totals[utterance] = totals.get(utterance, 0.0) + weight
    sources = [recipe / "dump" / "raw" / name for name in ("train_sp", "more")]
    known = {key for source in sources for key in table(source / "wav.scp")}
    assert totals and totals.keys() <= known
    assert any(key.startswith("more") for key in totals)
    assert any(key.endswith("-kd2") for key in weights)
    assert all(total == pytest.approx(1, abs=1e-6) for total in totals.values())


def test_report_of_four_systems(recipe: Path):
    report = json.loads(
        (recipe / "exp" / "asr_small_sparse_seed3" / "report_dev.json").read_text()
    )
    names = [system["name"] for system in report["systems"]]
    assert names == ["teacher", "student", "student+KD", "sparse"]


def test_a_sparse_teacher(recipe: Path):
    """Stage 11: the teacher itself, pruned; the average is as sparse."""
    sparse = recipe / "exp" / "asr_small_sparse_seed3"
    config = yaml.safe_load((sparse / "config.yaml").read_text())
    assert config["init_param"] == ["exp/asr_small/valid.loss.ave.pth"]
    assert config["encoder_conf"] == CONFIG["encoder_conf"]
    assert config["seed"] == 3
    model = torch.load(sparse / "valid.loss.ave.pth")
    for name, weight in model.items():
        is_pruned = name.endswith("weight") and weight.dim() > 1 and "embed" not in name
        if is_pruned or name == "encoder.embed.conv.0.weight":
            zeros = int((weight == 0).sum())
            assert zeros == int(0.6 * weight.numel() + 0.5), name
    text = (sparse / "report_dev.md").read_text()
    assert "Sparsity %" in text and "encoder.encoders.0.feed_forward.w_1.weight" in text


def test_a_trained_teacher_is_pruned_on_other_data(recipe: Path):
    """Dropped in without its training configuration: lengths are those of the data,
    the normalisation is the teacher's."""
    options = ("--teacher_asr_config", "", "--teacher_train_set", "dev")
    for stage in "2", "4", "11":
        stages = ("--stage", stage, "--stop_stage", stage, "--sparse_tag", "dev")
        answer = kd(recipe, *options, *stages)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    folders = [recipe / "exp" / name for name in ("asr_small", "asr_small_dev")]
    teacher, sparse = (
        yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders
    )
    shapes = "exp/asr_stats_raw_en_char_sp_dev_sp/train"
    assert sparse["train_shape_file"] == [
        f"{shapes}/speech_shape",
        f"{shapes}/text_shape.char",
    ]
    files = dict(list(each)[:2] for each in sparse["train_data_path_and_name_and_type"])
    assert files["dump/raw/dev_sp/wav.scp"] == "speech"
    assert sparse["normalize_conf"] == teacher["normalize_conf"]
    assert (folders[1] / "valid.loss.ave.pth").exists()


def test_students_are_espnet_experiments(recipe: Path):
    for name in ("asr_small", "asr_small_kd_sequence"):
        config = yaml.safe_load((recipe / "exp" / name / "config.yaml").read_text())
        assert config["normalize_conf"]["stats_file"].startswith("exp/asr_stats_raw_en")
        hyps = recipe / "exp" / name / "decode_asr_model_valid.loss.ave" / "dev"
        assert len((hyps / "text").read_text().splitlines()) == 3
    files = config["train_data_path_and_name_and_type"]
    assert ["dump/raw/train_sp_kd_sequence/kd_weight", "kd_weight", "text_float"] in [
        list(file) for file in files
    ]


def test_a_training_set_in_parts(recipe: Path):
    """--num_splits_asr, with the weights of the KD set beside audio and text."""
    options = ("--num_splits_asr", "2", "--asr_tag", "parts")
    answer = kd(recipe, "--stage", "10", "--stop_stage", "10", *options)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    student = recipe / "exp" / "asr_parts_kd_sequence"
    config = yaml.safe_load((student / "config.yaml").read_text())
    assert config["multiple_iterator"]
    files = dict(list(each)[:2] for each in config["train_data_path_and_name_and_type"])
    splits = "exp/asr_parts_kd_sequence/splits2"
    assert files[f"{splits}/kd_weight"] == "kd_weight"
    for name in "wav.scp", "kd_weight":
        whole = table(recipe / "dump" / "raw" / "train_sp_kd_sequence" / name)
        parts = [table(recipe / splits / name / f"split.{n}") for n in (0, 1)]
        assert parts[0] and parts[1] and {**parts[0], **parts[1]} == whole
    assert (student / "valid.loss.ave.pth").exists()


def written(recipe: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in recipe.rglob("*") if p.is_file()}


def test_what_is_done_is_not_done_again(recipe: Path):
    before = written(recipe)
    answer = kd(recipe, "--stage", "2")
    assert answer.returncode == 0, answer.stderr
    assert written(recipe) == before
    for name in ("asr_small", "asr_small_kd_sequence", "teacher_decode/asr_small/more"):
        assert f"done before: exp/{name}" in answer.stdout
    assert "| student+KD " in answer.stdout  # the table is still shown


def test_a_shard_that_was_removed_is_decoded_again(recipe: Path):
    folder = recipe / "exp" / "teacher_decode" / "asr_small" / "more"
    shard = folder / "hypotheses.1.jsonl"
    before = shard.read_text()
    shard.unlink()
    answer = kd(recipe, "--stage", "6", "--stop_stage", "6")
    assert answer.returncode == 0, answer.stderr
    assert shard.read_text() == before
    done = re.findall("done before: exp/teacher_decode/asr_small/(.*)", answer.stdout)
    assert sorted(done) == ["dev", "train_sp"]


def test_a_changed_decoding_is_scored_again(recipe: Path):
    student = recipe / "exp" / "asr_small_kd_sequence"
    folder = student / "decode_asr_model_valid.loss.ave" / "dev"
    decoded = (folder / "text").read_text()
    result = folder / "score_wer" / "result.md"
    (folder / "text").write_bytes((recipe / "dump/raw/dev/text").read_bytes())
    others = written(recipe / "exp" / "asr_small")
    answer = kd(recipe, "--stage", "13")
    assert answer.returncode == 0, answer.stderr
    (folder / "text").write_text(decoded)
    for shown in result.read_text(), answer.stdout:
        assert re.search(r"\| student\+KD +\| +0\.00 ", shown)
    assert written(recipe / "exp" / "asr_small") == others


def test_another_training_in_the_same_folder_is_refused(recipe: Path):
    student = recipe / "exp" / "asr_small_kd_sequence"
    before = {path.name: path.stat().st_mtime_ns for path in student.glob("*.*")}
    stage = ("--stage", "10", "--stop_stage", "10")
    for option in (
        ("--kd_args", "--seed 7"),
        ("--kd_config", "conf/other/sequence.yaml"),
    ):
        if option[0] == "--kd_config":
            (recipe / "conf" / "other").mkdir()
            (recipe / option[1]).write_text("kd_conf: {hard_weight: 0.5}\n")
        answer = kd(recipe, *stage, *option)
        assert answer.returncode != 0
        assert "exp/asr_small_kd_sequence holds a training with other" in answer.stderr
        assert "give another --asr_tag, --kd_tag or --sparse_tag" in answer.stderr
    after = {path.name: path.stat().st_mtime_ns for path in student.glob("*.*")}
    assert after.keys() == before.keys()
    assert after["config.yaml"] == before["config.yaml"]


def test_changed_data_are_formatted_again(recipe: Path):
    text = recipe / "data" / "dev" / "text"
    text.write_text(text.read_text().replace("dev0 ab", "dev0 dd"))
    answer = kd(recipe, "--stage", "2", "--stop_stage", "2")
    assert answer.returncode == 0, answer.stderr
    done = re.findall("done before: dump/raw/(.*)", answer.stdout)
    assert done == ["more", "train_sp"]
    assert table(recipe / "dump" / "raw" / "dev" / "text")["dev0"] == "dd"


EPOCH = re.compile(r"epoch (\d+) of 9999: train loss \S+, valid loss \S+, acc .+ left")
# An epoch takes seconds, so that the signal after an epoch's line does not come while
# ESPnet writes its checkpoint.
EPOCHS = "--max_epoch 9999 --num_iters_per_epoch 100"
LONG = ("--asr_tag", "long", "--asr_args", EPOCHS)


def stopped(folder: Path, number: signal.Signals) -> tuple[int, list[int], str]:
    """Stop a training after its second epoch.

    Returns its exit code, the reported epochs, and stderr without ESPnet's launcher.
    """
    with kd_process(folder, "--stage", "9", "--stop_stage", "9", *LONG) as process:
        epochs: list[int] = []
        for line in process.stdout:
            epochs += [int(epoch) for epoch in EPOCH.findall(line)]
            if len(epochs) == 2:
                process.send_signal(number)
                break
        epochs += [int(epoch) for epoch in EPOCH.findall(process.stdout.read())]
        stderr = [x for x in process.stderr if "(launch:" not in x]
    return process.returncode, epochs, "".join(stderr)


def test_a_training_is_stopped_and_resumes(recipe: Path):
    """By Ctrl-C, by kill; then its checkpoint is torn, and one of an older ESPnet."""
    code, before, stderr = stopped(recipe, signal.SIGINT)
    assert code == 130, stderr
    assert re.fullmatch(r"\S+ \(kd.sh\) stopped; the same command resumes\n", stderr)
    code, after, stderr = stopped(recipe, signal.SIGTERM)
    assert code == 143 and stderr.count("\n") == 1, stderr
    assert before == list(range(1, len(before) + 1))
    # None is reported twice; some ended while kd.sh was stopped.
    assert before[-1] < after[0] <= before[-1] + 3
    assert after == list(range(after[0], after[0] + len(after)))
    trainings = subprocess.run(["pgrep", "-f", "exp/asr_long"], capture_output=True)
    assert not trainings.stdout

    student = recipe / "exp" / "asr_long"
    checkpoint = student / "checkpoint.pth"
    state = torch.load(checkpoint, **UNSAFE)
    stage = ("--stage", "9", "--stop_stage", "9", *LONG)
    checkpoint.write_bytes(checkpoint.read_bytes()[:3000])
    answer = kd(recipe, *stage)
    assert answer.returncode == 1
    assert "checkpoint.pth: the file is cut off after 3000 bytes" in answer.stderr
    assert re.search(r"--pretrained_model exp/asr_long/\d+epoch.pth", answer.stderr)
    assert "Stage 9" not in answer.stdout

    if installed_version() < "202609":
        return
    state["reporter"]["stats"][1]["train"]["loss"] = np.float64(1.0)
    torch.save(state, checkpoint)
    answer = kd(recipe, *stage)
    last = answer.stderr.splitlines()[-1]
    assert "Error: training failed, see exp/asr_long/train.log: UnsafeLoad" in last
    assert "ESPNET_ALLOW_UNSAFE_TORCH_LOAD=1 before the same command" in last
    assert "Traceback" not in answer.stderr
