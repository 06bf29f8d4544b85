"""kd.sh and its helpers from a shell; the whole chain is `make demo-small`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
TEMPLATE = REPO / "egs" / "TEMPLATE" / "asr1"
NEEDED = (
    "--train_set train --valid_set valid --test_sets test --asr_config conf/train.yaml"
)
SETS = ("train", "valid", "test")
NOTHING = "--skip_data_prep true --skip_train true --skip_eval true"


@pytest.fixture
def recipe(tmp_path):
    """A recipe folder with a link to kd.sh and nothing else of ours."""
    (tmp_path / "kd.sh").symlink_to(TEMPLATE / "kd.sh")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("decoder: transformer\n")
    return tmp_path


def shell(folder: Path, *words: str, **variables: str):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPO), **variables}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True
    )


def kd(folder: Path, options: str):
    return shell(folder, "./kd.sh", *options.split())


def test_help_lists_every_option_with_its_default(recipe):
    answer = kd(recipe, "--help")
    assert answer.returncode == 0
    for text in ("nbpe=30", "inference_nj=32", "kd_config=", "14 report"):
        assert text in answer.stdout


def test_unknown_option_is_refused(recipe):
    answer = kd(recipe, f"{NEEDED} --no_such_option 1")
    assert answer.returncode != 0
    assert "--no_such_option" in answer.stderr


def test_missing_option_is_named(recipe):
    answer = kd(recipe, "--train_set train --valid_set valid --test_sets test")
    assert answer.returncode != 0
    assert "--asr_config is needed" in answer.stderr


def test_options_of_asr_sh_are_accepted(recipe):
    options = (
        "--use_lm false --audio-format wav --max_wav_duration 30 --nj 4 --num_inf 1 "
        "--eval_valid_set true --use_nlp_prompt false --hf_repo lab/name"
    )
    answer = kd(recipe, f"{NEEDED} {options} {NOTHING}")
    assert answer.returncode == 0, answer.stderr
    unused = re.findall(r"--(\w+) \S+: not used by kd.sh", answer.stdout)
    assert sorted(unused) == ["audio_format", "max_wav_duration"]


@pytest.mark.parametrize(
    "option, word",
    [
        ("--feats_type fbank", "feats_type"),
        ("--token_type phn", "token_type"),
        ("--num_nodes 2", "run_jobs.py starts jobs on this machine alone"),
        ("--use_streaming true", "use_streaming"),
        ("--use_k2 true", "use_k2"),
        ("--sot_asr true", "sot_asr"),
        ("--num_ref 2", "num_ref"),
        ("--ngpu x", "--ngpu x: must be a whole number"),
        ("--nj 0", "--nj 0: must be a whole number"),
        ("--fs none", "--fs none: must be a number of Hz"),
        ("--stage x", "--stage x"),
        ("--stage 99", "--stage 99: not a stage; must be 1 to 14"),
        ("--stage 12 --stop_stage 3", "--stop_stage 3: before --stage 12"),
        ("--stop_stage 0", "--stop_stage 0: before --stage 1"),
        ("--skip_stages 9,10", "--skip_stages: 9,10 is not a stage"),
        ("--dry_run yes", "--dry_run yes: must be true or false"),
        ("--asr_task st", "--asr_task st: must be asr or asr_transducer"),
        ("--teacher_task st", "--teacher_task st: must be asr or asr_transducer"),
        ("--stage 12", "nothing is trained"),
        ("--stage 13 --kd_config sequence.yaml", "nothing is trained"),
    ],
)
def test_what_kd_cannot_do_is_refused(recipe, option, word):
    answer = kd(recipe, f"{NEEDED} {option}")
    assert answer.returncode != 0
    assert word in answer.stderr


def test_a_stage_can_be_run_alone_and_skipped(recipe):
    (recipe / "local").mkdir()
    script = recipe / "local" / "data.sh"
    script.write_text('#!/bin/sh\nmkdir -p data && echo "$@" > data/options\n')
    script.chmod(0o755)
    kd(recipe, f"{NEEDED} --stage 1 --stop_stage 1 --skip_stages 1")
    assert not (recipe / "data").exists()
    options = [*NEEDED.split(), "--stage", "1", "--stop_stage", "1"]
    answer = shell(recipe, "./kd.sh", *options, "--local_data_opts", "--number 3")
    assert answer.returncode == 0, answer.stderr
    assert (recipe / "data" / "options").read_text() == "--number 3\n"


def test_missing_input_names_the_stage_that_makes_it(recipe):
    answer = kd(recipe, f"{NEEDED} --stage 9 --stop_stage 9 --ngpu 0")
    assert answer.returncode != 0
    assert "dump/raw/train/wav.scp: not found; run stage 2" in answer.stderr


def write_inputs_of_stage_9(recipe: Path) -> None:
    """Of the right names, and empty: a training that reads them cannot start."""
    tokens = recipe / "data" / "token_list" / "bpe_unigram30"
    stats = recipe / "exp" / "asr_stats_raw_bpe30"
    for file in (
        *(recipe / "dump" / "raw" / each / "wav.scp" for each in SETS),
        *(recipe / "dump" / "raw" / each / "text" for each in SETS),
        tokens / "tokens.txt",
        tokens / "bpe.model",
        stats / "train" / "speech_shape",
        stats / "train" / "text_shape.bpe",
        stats / "train" / "feats_stats.npz",
        stats / "valid" / "speech_shape",
        stats / "valid" / "text_shape.bpe",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tokens / "tokens.txt").write_text("<blank>\n<unk>\na\n<sos/eos>\n")


def test_failure_stops_the_chain_and_names_the_log(recipe):
    """A training that cannot start. Stage 12 is not reached."""
    write_inputs_of_stage_9(recipe)
    options = "--stage 9 --skip_stages 10 --ngpu 0 --asr_exp exp/student"
    answer = kd(recipe, f"{NEEDED} {options} --python {sys.executable}")
    assert answer.returncode != 0
    last = answer.stderr.splitlines()[-1]
    assert re.search("failed, see exp/student/train.log: [A-Z][A-Za-z]+: ", last), last
    assert "Traceback" not in answer.stderr
    assert "Ended (code" in (recipe / "exp" / "student" / "train.log").read_text()
    assert not (recipe / "exp" / "student" / ".done").exists()
    assert (recipe / "exp" / "student" / ".command").exists()
    assert "Stage 12" not in answer.stdout


def test_a_launcher_that_itself_fails(recipe):
    """No log is written; that of an earlier run does not describe this one."""
    write_inputs_of_stage_9(recipe)
    program(
        recipe / "queue.pl", '#!/bin/sh\necho "queue.pl: no such queue" >&2\nexit 1\n'
    )
    (recipe / "cmd.sh").write_text(
        "export train_cmd=./queue.pl cuda_cmd=./queue.pl decode_cmd=./queue.pl\n"
    )
    options = "--stage 9 --stop_stage 9 --ngpu 0 --asr_exp exp/student --python "
    for _ in range(2):
        answer = kd(recipe, f"{NEEDED} {options}{sys.executable}")
        reason = "training failed, see exp/student/launch.log: queue.pl: no such queue"
        assert answer.stderr.splitlines()[-1].endswith(reason), answer.stderr
        (recipe / "exp/student/train.log").write_text("KeyError: of another run\n")


@pytest.mark.parametrize(
    "options, expected",
    [
        ("--ngpu 4", "--gpu 4 exp/student/train.log .*asr_train .*--ngpu 4 "),
        (
            "--ngpu 4 --num_nodes 2",
            "--gpu 4 .*--num_nodes 2 exp/student/train.log srun .*asr_train .*--ngpu 4 "
            ".*--dist_launcher slurm",
        ),
    ],
)
def test_several_gpus_go_through_espnets_launch_and_cmd_sh(recipe, options, expected):
    """The arguments of slurm.pl. The one here records them and runs nothing."""
    write_inputs_of_stage_9(recipe)
    program(recipe / "utils" / "slurm.pl", '#!/bin/sh\necho "$@" >asked\nexit 1\n')
    (recipe / "cmd.sh").write_text(
        'export train_cmd=slurm.pl cuda_cmd="slurm.pl -p gpu" decode_cmd=slurm.pl\n'
    )
    (recipe / "path.sh").write_text("export PATH=$PWD/utils:$PATH\n")
    training = "--stage 9 --stop_stage 9 --asr_exp exp/student"
    answer = kd(recipe, f"{NEEDED} {training} {options} --python {sys.executable}")
    assert "training failed, see exp/student/launch.log\n" in answer.stderr
    asked = (recipe / "asked").read_text()
    assert asked.startswith("-p gpu --name exp/student/train.log ")
    assert re.search(expected, asked)
    assert "--multiprocessing_distributed true" in asked.replace("True", "true")


def test_the_valid_set_among_the_test_sets(recipe):
    """asr.sh decodes it once, as it was before long utterances were removed."""
    write_inputs_of_stage_9(recipe)
    write_decoded(recipe)
    student = ("--asr_exp", "exp/student", "--stage", "12", "--stop_stage", "12")
    asked = (*NEEDED.split(), *student, "--test_sets", "test valid test")
    answer = shell(recipe, "./kd.sh", *asked)
    assert "decoding of valid test with stock" in answer.stdout
    (recipe / "dump" / "raw" / "org" / "valid").mkdir(parents=True)
    (recipe / "dump" / "raw" / "org" / "valid" / "wav.scp").touch()
    for more in (), ("--test_sets", "test", "--eval_valid_set", "true"):
        answer = shell(recipe, "./kd.sh", *asked, *more)
        assert "decoding of org/valid test with stock" in answer.stdout


def test_the_lm_that_asr_sh_would_use_is_required(recipe):
    """In a recipe that has asr.sh; without, --use_lm true is only a default."""
    write_inputs_of_stage_9(recipe)
    write_decoded(recipe)
    stage = (*NEEDED.split(), "--stage", "12", "--asr_exp", "exp/student")
    answer = shell(recipe, "./kd.sh", *stage)
    lm = "exp/lm_train_bpe30/config.yaml not found"
    assert f"{lm}, no LM is used" in answer.stdout
    assert "decoding of test with stock" in answer.stdout
    program(recipe / "asr.sh", "#!/bin/sh\nexit 1\n")
    answer = shell(recipe, "./kd.sh", *stage)
    assert answer.returncode != 0
    assert f"{lm}: train it (asr.sh, stages 6 to 8), give --lm_exp" in answer.stderr


def test_missing_queue_falls_back_to_this_machine(recipe):
    (recipe / "cmd.sh").write_text(
        'export train_cmd="no_such_queue.pl --mem 4G" cuda_cmd=cat decode_cmd=cat\n'
    )
    answer = kd(recipe, f"{NEEDED} {NOTHING}")
    assert answer.returncode == 0
    assert "no_such_queue.pl is not on PATH" in answer.stdout


def test_a_copy_of_kd_sh_finds_our_files(recipe):
    (recipe / "kd.sh").unlink()
    shutil.copy(TEMPLATE / "kd.sh", recipe / "kd.sh")
    answer = kd(recipe, f"{NEEDED} {NOTHING}")
    assert answer.returncode == 0, answer.stderr


def test_what_asr_sh_made_is_left_alone(recipe):
    """Sets, token list and a trained student, each known by kd.sh's missing mark."""
    student = recipe / "exp" / "student"
    for file in (
        recipe / "dump" / "raw" / "train" / "wav.scp",
        recipe / "dump" / "raw" / "train" / "text",
        recipe / "dump" / "raw" / "valid" / "wav.scp",
        recipe / "dump" / "raw" / "test" / "wav.scp",
        recipe / "data" / "token_list" / "char" / "tokens.txt",
        recipe / "exp" / "asr_stats_raw_char" / "train" / "speech_shape",
        student / "config.yaml",
        student / "valid.acc.ave_1best.pth",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("<blank>\n<unk>\na\n")
    before = {path: path.stat().st_mtime_ns for path in recipe.rglob("*")}
    options = f"{NEEDED} --token_type char --asr_exp exp/student --skip_stages 7"
    answer = kd(recipe, f"{options} --stage 2 --stop_stage 4")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("was not made by kd.sh: left as it is") == 5
    answer = kd(recipe, f"{options} --stage 9 --stop_stage 9")
    assert answer.returncode == 0, answer.stderr
    assert "exp/student was not trained by kd.sh: used as it is" in answer.stdout
    assert before == {path: path.stat().st_mtime_ns for path in recipe.rglob("*")}
    (student / "valid.acc.ave_1best.pth").unlink()
    answer = kd(recipe, f"{options} --stage 9 --stop_stage 9")
    assert "a training that kd.sh did not begin" in answer.stderr


def write_decoded(recipe: Path) -> None:
    """A student without KD that has decoded the test set."""
    files = {
        "exp/student/.command": "",
        "exp/student/config.yaml": "",
        "exp/student/valid.acc.ave.pth": "",
        "exp/student/inference_asr_model_valid.acc.ave/test/text": (
            "a one two\nb UH three four\n"
        ),
        "dump/raw/test/text": "a one <NOISE> two\nb three four\n",
    }
    for name, text in files.items():
        (recipe / name).parent.mkdir(parents=True, exist_ok=True)
        (recipe / name).write_text(text)


@pytest.fixture
def decoded(recipe):
    write_decoded(recipe)
    return recipe


def errors_in_stage_13(recipe: Path, *options: str) -> tuple[float, float]:
    """Deletions and insertions of the student's test set, by reference word."""
    stages = ("--stage", "13", "--stop_stage", "13", "--python", sys.executable)
    words = (*NEEDED.split(), "--asr_exp", "exp/student", *stages, *options)
    answer = shell(recipe, "./kd.sh", *words)
    assert answer.returncode == 0, answer.stderr
    (result,) = recipe.glob("exp/student/*/test/score_wer/result.json")
    (system,) = json.loads(result.read_text())["systems"]
    assert system["substitutions"] == 0
    return system["deletions"], system["insertions"]


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_words_that_are_not_scored(decoded):
    """Of a: one <NOISE> two / one two; of b: three four / UH three four."""
    assert errors_in_stage_13(decoded) == (1 / 5, 1 / 5)
    (decoded / "symbols.txt").write_text("<NOISE>\n")
    nlsyms = ("--nlsyms_txt", "symbols.txt")
    assert errors_in_stage_13(decoded, *nlsyms) == (0, 1 / 4)
    program(decoded / "local/wer_output_filter", "#!/bin/sh\nsed 's/ UH//'\n")
    assert errors_in_stage_13(decoded) == (1 / 5, 0)
    assert errors_in_stage_13(decoded, *nlsyms) == (0, 0)


def test_a_filter_that_loses_an_id_is_refused(decoded):
    program(decoded / "local/wer_output_filter", "#!/bin/sh\nhead -n 1\n")
    options = "--asr_exp exp/student --stage 13 --python " + sys.executable
    answer = kd(decoded, f"{NEEDED} {options}")
    assert answer.returncode != 0
    assert "local/wer_output_filter: its lines do not begin with" in answer.stderr


def test_the_recipes_own_scoring_is_called(decoded):
    """Once for a folder, whatever the number of its test sets, as asr.sh calls it."""
    (results,) = decoded.glob("exp/student/inference*")
    shutil.copytree(results / "test", results / "more")
    shutil.copytree(decoded / "dump/raw/test", decoded / "dump/raw/more")
    program(decoded / "local/score.sh", '#!/bin/sh\necho "$@" >>asked\n')
    sets = ("--test_sets", "test more", "--local_score_opts", "--cmd run.pl")
    options = (*NEEDED.split(), "--asr_exp", "exp/student", "--stage", "13")
    stages = ("--stop_stage", "13", "--python", sys.executable)
    answer = shell(decoded, "./kd.sh", *options, *stages, *sets)
    assert answer.returncode == 0, answer.stderr
    assert (decoded / "asked").read_text() == "--cmd run.pl exp/student\n"


@pytest.mark.parametrize("lines, jobs", [(16, 16), (40, 32), (7, 3), (1, 1)])
def test_keys_are_split_in_equal_parts(tmp_path, lines, jobs):
    """The function itself; some lines are long."""
    keys = [f"utt{n} {'x' * (n % 5) ** 4}.wav\n" for n in range(lines)]
    (tmp_path / "wav.scp").write_text("".join(keys))
    functions = TEMPLATE / "utils" / "kd_functions.sh"
    command = f". {functions}; split_keys wav.scp keys {jobs}"
    answer = shell(tmp_path, "bash", "-euc", command)
    assert answer.returncode == 0, answer.stderr
    files = [tmp_path / "keys" / f"keys.{n + 1}.scp" for n in range(jobs)]
    parts = [path.read_text().splitlines(keepends=True) for path in files]
    assert sum(parts, []) == keys
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_path_sh_of_the_recipe_comes_first(recipe):
    """It may activate the environment in which the package is found."""
    (recipe / "kd.sh").unlink()
    shutil.copy(TEMPLATE / "kd.sh", recipe / "kd.sh")
    (recipe / "path.sh").write_text(f"export PYTHONPATH={REPO}\n")
    options = [*NEEDED.split(), *NOTHING.split(), "--python", sys.executable]
    answer = shell(recipe, "./kd.sh", *options, PYTHONPATH="")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    "log, message",
    [
        (
            "Traceback (most recent call last):\n  File x\nKeyError: 1\n\nDuring the "
            "handling:\n\nTraceback (most recent call last):\n  File y\n"
            "espnet_kd.tasks.mixin.ConfigurationError: kd_conf: no\n# Ended (code 1)",
            "ConfigurationError: kd_conf: no",
        ),
        (
            "usage: x\nasr_train.py: error: no such\n# Ended",
            "asr_train.py: error: no such",
        ),
        ("INFO: 1epoch\n# Ended (code -9) at", "killed, as for lack of memory"),
        ("# Started\n# Ended (code 1)\n", ""),
    ],
)
def test_the_message_of_a_failed_command(tmp_path, log, message):
    (tmp_path / "train.log").write_text(log)
    command = f". {TEMPLATE}/utils/kd_functions.sh; refusal_in train.log"
    answer = shell(tmp_path, "bash", "-euc", command)
    assert answer.stdout == message + "\n", answer.stderr


@pytest.mark.parametrize(
    "script",
    [TEMPLATE / "kd.sh", *sorted(TEMPLATE.glob("utils/*.sh"))],
    ids=lambda path: path.name,
)
def test_scripts_can_be_read(script):
    """Lines fit a screen, kd.sh is short enough to read, shellcheck finds nothing."""
    lines = script.read_text().splitlines()
    assert [line for line in lines if len(line) > 88] == []
    assert len(lines) <= 410
    if shutil.which("shellcheck"):
        words = ("shellcheck", "-x", "-P", "SCRIPTDIR", str(script))
        answer = shell(TEMPLATE, *words)
        assert answer.returncode == 0, answer.stdout


class TestRunJobs:
    """run_jobs.py takes the command line of Kaldi's run.pl."""

    def run(self, folder, *words):
        return shell(folder, str(TEMPLATE / "utils" / "run_jobs.py"), *words)

    def test_array(self, tmp_path):
        words = ("--gpu", "0", "JOB=1:3", "log/JOB.txt", "echo", "part JOB")
        assert self.run(tmp_path, *words).returncode == 0
        for job in (1, 2, 3):
            assert f"part {job}" in (tmp_path / "log" / f"{job}.txt").read_text()

    def test_failed_job_is_named(self, tmp_path):
        command = ("JOB=1:2", "JOB.log", "test", "JOB", "=", "1")
        answer = self.run(tmp_path, *command)
        assert answer.returncode == 1
        assert "1 of 2 jobs failed" in answer.stderr and "2.log" in answer.stderr
        assert re.search(r"Ended \(code 1\)", (tmp_path / "2.log").read_text())

    def test_single_command(self, tmp_path):
        assert self.run(tmp_path, "--name", "x", "a.log", "echo", "JOB").returncode == 0
        assert "\nJOB\n" in (tmp_path / "a.log").read_text()
