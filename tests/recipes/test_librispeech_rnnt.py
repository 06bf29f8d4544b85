"""run_yang2022.sh and run_panchapagesan2020.sh on a LibriSpeech of seconds.

Models are made small by options, as a lab would change them. Starting Python with
ESPnet takes most of the time, so not every system is run.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torchaudio
import yaml

from tests.corpora.librispeech_tree import write_tree
from tests.recipes.running import REPO, run_script

TRAINING = (
    "--max_epoch 1 --num_iters_per_epoch 2 --accum_grad 1 --keep_nbest_models 1 "
    "--num_workers 0 "
)
CONVOLUTIONS = [[8, 10, 5], *[[8, 3, 2]] * 4, *[[8, 2, 2]] * 2]
WAV2VEC2 = dict(
    encoder_embed_dim=8,
    encoder_pos_conv_kernel=4,
    encoder_pos_conv_groups=2,
    encoder_num_layers=1,
    encoder_num_heads=2,
    encoder_ff_interm_features=8,
)
CHECKPOINT = "downloads/WAV2VEC2_BASE.pth"  # as run_yang2022.sh names it
BLOCK = dict(
    block_type="conformer",
    hidden_size=8,
    linear_size=8,
    heads=2,
    conv_mod_kernel_size=3,
)


def conf(block: str, **values: object) -> str:
    """NAME=VALUE as options of a block, without spaces."""
    texts = {k: json.dumps(value, separators=(",", ":")) for k, value in values.items()}
    return "".join(f"--{block}_conf {k}={text} " for k, text in texts.items())


def small(layers: str, joint: str) -> str:
    """All options of a small model's training, given those of its layers."""
    sizes = conf("decoder", hidden_size=8) + conf(joint, joint_space_size=8)
    return TRAINING + layers + sizes


CONFORMER = small(
    conf("encoder", **{"input_conf.conv_size": 4, "body_conf": [BLOCK]})
    + conf("decoder", embed_size=8),
    "joint_network",
)
SSL = (
    small(
        conf("encoder", extractor_conv_layer_config=CONVOLUTIONS, **WAV2VEC2)
        + conf("encoder", mask_length=2, mask_channel_length=2),
        "joint_net",
    )
    + f"--init_param {CHECKPOINT}::encoder.hubert_pretrain_model.wav2vec2"
)
RNNT = small(conf("encoder", num_layers=2, hidden_size=8, output_size=8), "joint_net")
OPTIONS = {
    "ngpu": "0",
    "nj": "1",
    "inference_nj": "1",
    "nbpe": "32",
    "test_sets": "test_clean",
    "local_data_opts": "--check_counts false",
    "asr_args": CONFORMER,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The recipe's folder beside a small corpus."""
    folder = tmp_path_factory.mktemp("librispeech")
    for name in ("TEMPLATE", "librispeech"):
        shutil.copytree(REPO / "egs" / name, folder / "egs" / name, symlinks=True)
    (folder / "conf").symlink_to(REPO / "conf")
    write_tree(folder / "corpus")
    return folder / "egs" / "librispeech" / "asr1"


def run(recipe: Path, script: str, *options: str, **variables: str) -> str:
    """The output of a script of the recipe, which must succeed."""
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    corpus = str(recipe.parents[2] / "corpus")
    return run_script(
        recipe, [script, *words, *options], LIBRISPEECH=corpus, **variables
    )


@pytest.fixture(scope="module")
def yang(recipe) -> Path:
    """The recipe after the streaming student's part of run_yang2022.sh."""
    torch.manual_seed(0)
    encoder = torchaudio.models.wav2vec2_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=CONVOLUTIONS,
        extractor_conv_bias=False,
        encoder_projection_dropout=0.0,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.0,
        aux_num_out=None,
        **WAV2VEC2,
    )
    (recipe / "downloads").mkdir()
    torch.save(encoder.state_dict(), recipe / CHECKPOINT)
    words = ("--teacher_asr_args", SSL, "--skip_stages", "13 14")
    variables = dict(STUDENTS="streaming", SYSTEMS="unlabelled")
    run(recipe, "./run_yang2022.sh", *words, **variables)
    return recipe


def config_of(exp: Path) -> dict:
    return yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8"))


def test_the_teacher_starts_from_torchaudio(yang: Path):
    """The weights frozen in the first updates are those of the download."""
    teacher = yang / "exp" / "asr_yang2022_wav2vec2"
    trained = torch.load(teacher / "valid.loss.ave.pth")
    start = torch.load(yang / CHECKPOINT)
    prefix = "encoder.hubert_pretrain_model.wav2vec2."
    assert start.keys() == {
        name.removeprefix(prefix) for name in trained if name.startswith(prefix)
    }
    for name, value in start.items():
        torch.testing.assert_close(trained[prefix + name], value, rtol=0, atol=0)
    assert config_of(teacher)["normalize"] is None


def test_the_streaming_student_is_taught_later(yang: Path):
    student = config_of(yang / "exp" / "asr_yang2022_streaming")
    taught = config_of(yang / "exp" / "asr_yang2022_streaming_kd_unlabelled")
    (loss,) = taught["kd_conf"]["losses"]
    assert (loss["nodes"], loss["classes"], loss["shift"]) == ("path", "full", 8)
    assert taught["teacher_config"] == ["exp/asr_yang2022_wav2vec2/config.yaml"]
    assert taught["encoder_conf"] == student["encoder_conf"]
    assert taught["encoder_conf"]["main_conf"]["dynamic_chunk_training"]


def test_unlabelled_audio_has_hypotheses_for_text(yang: Path):
    """References of the labelled set; the teacher's hypotheses of the other."""
    labelled = table(yang / "dump" / "raw" / "train_clean_100" / "text")
    decoded = yang / "exp" / "teacher_decode" / "asr_yang2022_wav2vec2"
    shard = decoded / "train_unlabelled_860" / "hypotheses.1.jsonl"
    hypotheses = {}
    for line in shard.read_text().splitlines():
        cut = json.loads(line)
        hypotheses[cut["id"]] = cut["supervisions"][0]["custom"]["hypotheses"][0][
            "text"
        ]
    assert len(hypotheses) == 5
    hypotheses = {name: text for name, text in hypotheses.items() if text}
    kd_set = yang / "dump" / "raw" / "train_clean_100_kd_unlabelled"
    assert table(kd_set / "text") == {**labelled, **hypotheses}


def table(path: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def test_the_table_of_the_streaming_student(yang: Path):
    table = json.loads(
        (yang / "exp" / "yang2022_streaming_test_clean.json").read_text()
    )
    names = [system["name"] for system in table["systems"]]
    assert names == ["teacher", "streaming", "unlabelled"]


def test_a_dense_model_is_pruned_and_teaches_itself(yang: Path):
    """run_panchapagesan2020.sh: its training, on what the run before prepared."""
    pruning = "--kd_conf pruning.end=2 --kd_conf pruning.every=1"
    run(
        yang,
        "./run_panchapagesan2020.sh",
        *("--teacher_asr_args", RNNT, "--skip_stages", "1 2 3 4 12 13 14"),
        *("--train_set", "train_clean_100", "--feats_normalize", "none"),
        *("--asr_stats_dir", "exp/asr_stats_yang2022"),
        DENSE="rnnt",
        LEVELS="0.9",
        SPARSE_ARGS=f"{pruning} --max_epoch 2 --keep_nbest_models 1",
    )
    dense = yang / "exp" / "asr_panchapagesan2020_rnnt"
    for tag, losses in (("sparse0.9", []), ("sparse0.9_kd", ["lattice"])):
        exp = dense.with_name(f"{dense.name}_{tag}")
        config = config_of(exp)
        assert [each["nodes"] for each in config["kd_conf"]["losses"]] == losses
        assert config["init_param"] == [f"exp/{dense.name}/valid.loss.ave.pth"]
        assert config["encoder_conf"] == config_of(dense)["encoder_conf"]
        model = torch.load(exp / "valid.loss.ave.pth")
        weight = model["encoder.enc.0.rnn0.weight_hh_l0"]
        assert int((weight == 0).sum()) == int(0.9 * weight.numel() + 0.5)
