"""egs/librispeech on a small copy of the corpus: run.sh from the FLAC files to the
report, then a paper's script in the same folder.

Starting Python with ESPnet takes most of the time, so one run of each serves all tests.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from tests.corpora.librispeech_tree import TEXTS, write_tree
from tests.recipes.running import REPO, run_script

RECIPE = REPO / "egs" / "librispeech" / "asr1"
SMALL = (
    "--max_epoch 1 --num_iters_per_epoch 2 --batch_type unsorted --batch_size 3 "
    "--accum_grad 1 --keep_nbest_models 1 --num_workers 0 --use_amp false "
)
BLOCK = dict(block_type="conformer", hidden_size=8, linear_size=8, heads=1)
BLOCKS = json.dumps([BLOCK | dict(conv_mod_kernel_size=3)], separators=(",", ":"))
TRANSDUCER = SMALL + (
    f"--encoder_conf body_conf={BLOCKS} --encoder_conf input_conf.conv_size=4 "
    "--decoder_conf embed_size=8 --decoder_conf hidden_size=8 "
    "--joint_network_conf joint_space_size=8"
)
TRANSFORMER = SMALL + (
    "--encoder_conf output_size=8 --encoder_conf attention_heads=1 "
    "--encoder_conf linear_units=8 --encoder_conf num_blocks=1 "
    "--decoder_conf attention_heads=1 --decoder_conf linear_units=8 "
    "--decoder_conf num_blocks=1"
)
# Even an untrained model then outputs something.
SEARCH = "beam_size: 2\nminlenratio: 0.1\nmaxlenratio: 0.3\n"


def run(folder: Path, script: str, *options: str, **variables: str) -> str:
    """A script of the recipe on the small corpus; returns its log."""
    words = [script, "--nj", "1", "--inference_nj", "1", "--test_sets", "test_clean"]
    words += ["--local_data_opts", "--check_counts false", *options]
    places = dict(LIBRISPEECH="../corpus", NGPU="0")
    return run_script(folder / "asr1", words, **places, **variables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """corpus/ and asr1/, the recipe after run.sh."""
    folder = tmp_path_factory.mktemp("librispeech")
    write_tree(folder / "corpus")
    left_out = shutil.ignore_patterns("data", "dump", "exp", "downloads")
    shutil.copytree(RECIPE, folder / "asr1", ignore=left_out)
    options = ("--nbpe", "30", "--asr_tag", "student", "--teacher_exp", "exp/teacher")
    models = ("--asr_args", TRANSDUCER, "--teacher_asr_args", TRANSDUCER)
    run(folder, "./run.sh", *options, *models)
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    return folder / "asr1"


def table(path: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def names_in(report: Path) -> list[str]:
    return [system["name"] for system in json.loads(report.read_text())["systems"]]


def test_run_sh_ends_with_a_report(recipe: Path):
    report = recipe / "exp" / "asr_student_kd_one_best_path" / "report_test_clean.json"
    assert names_in(report) == ["teacher", "student", "student+KD"]


def test_the_students_learn_from_both_kinds_of_audio(recipe: Path):
    """Labelled audio with its references; the rest with the teacher's hypotheses."""
    kd_set = recipe / "dump" / "raw" / "train_clean_100_kd_one_best_path"
    texts = table(kd_set / "text")
    references = table(recipe / "data" / "train_clean_100" / "text")
    unlabelled = table(recipe / "data" / "train_unlabelled_860" / "wav.scp")
    assert {name: texts[name] for name in references} == references
    assert texts.keys() - references.keys() and texts.keys() <= {
        *references,
        *unlabelled,
    }
    hypotheses = {text for name, text in texts.items() if name in unlabelled}
    assert not hypotheses & set(TEXTS)


def test_flac_is_read_without_conversion(recipe: Path):
    locations = table(recipe / "dump" / "raw" / "train_unlabelled_860" / "wav.scp")
    for name, path in locations.items():
        assert path.startswith("../corpus/LibriSpeech/train-")
        assert path.endswith(f"/{name}.flac")
    assert not list(recipe.glob("dump/raw/*/wav"))


def test_word_pieces_are_of_the_labelled_audio(recipe: Path):
    tokens = recipe / "data" / "en_token_list" / "bpe_unigram30" / "tokens.txt"
    assert len(tokens.read_text().split()) == 30
    known = set("".join(table(recipe / "data/train_clean_100/text").values()))
    pieces = tokens.read_text().split("\n")[2:-2]
    assert set("".join(pieces)) <= known | {"▁"}


@pytest.fixture(scope="module")
def kim2019(folder: Path) -> Path:
    """The recipe after run_kim2019.sh with one student and one beta."""
    recipe = folder / "asr1"
    (recipe / "conf" / "small.yaml").write_text(SEARCH)
    search = ("--inference_config", "conf/small.yaml")
    search += ("--teacher_inference_config", "conf/small.yaml")
    models = ("--asr_args", TRANSFORMER, "--teacher_asr_args", TRANSFORMER)
    # Stages 13 and 14 are tested with run.sh; this script has its own table.
    few = ("--nbpe", "32", "--skip_stages", "13 14")
    variables = dict(STUDENTS="a", BETAS="5")
    run(folder, "./run_kim2019.sh", *few, *search, *models, **variables)
    return recipe


def test_run_kim2019_ends_with_a_table(kim2019: Path):
    names = names_in(kim2019 / "exp" / "kim2019_a_test_clean.json")
    assert names == ["teacher", "a", "SEQ-KD", "ERR-KD 5"]


def word_errors(one: list[str], other: list[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            cost = min(diagonal + (word != against), row[j] + 1, row[j - 1] + 1)
            diagonal, row[j] = row[j], cost
    return row[-1]


def test_hypotheses_weigh_by_their_errors(kim2019: Path):
    """ERR-KD: exp(-beta * WER); SEQ-KD: 1."""
    references = table(kim2019 / "data" / "train_960" / "text")
    for tag, beta in (("seq_kd", 0), ("err_kd_beta5", 5)):
        kd_set = kim2019 / "dump" / "raw" / f"train_960_kd_{tag}"
        texts, weights = table(kd_set / "text"), table(kd_set / "kd_weight")
        assert texts and texts.keys() == weights.keys() <= references.keys()
        for name, text in texts.items():
            words = references[name].split()
            wer = word_errors(words, text.split()) / len(words)
            expected = math.exp(-beta * wer)
            assert float(weights[name]) == pytest.approx(expected, rel=1e-4)


def test_students_of_run_kim2019_differ_in_their_data_alone(kim2019: Path):
    configs = [
        yaml.safe_load((kim2019 / "exp" / name / "config.yaml").read_text())
        for name in ("asr_kim2019_a_kd_seq_kd", "asr_kim2019_a_kd_err_kd_beta5")
    ]
    differing = {name for name in configs[0] if configs[0][name] != configs[1][name]}
    assert differing <= {
        "config",
        "output_dir",
        "train_data_path_and_name_and_type",
        "train_shape_file",
    }
