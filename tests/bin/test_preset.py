"""KD presets: options for kd_set, a training configuration, and refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from espnet_kd.bin import kd_set, preset
from espnet_kd.config.kd_conf import parse_kd_conf
from espnet_kd.config.presets import read_preset

PRUNING = dict(sparsity=0.5, end=10)
PRESETS = sorted((Path(__file__).parents[2] / "conf" / "kd").glob("*.yaml"))


@pytest.fixture
def kd_config(tmp_path: Path) -> Path:
    path = tmp_path / "kd.yaml"
    path.write_text(
        yaml.safe_dump(
            dict(
                kd_set=dict(nbest=4, weights="posterior", max_wer=None),
                kd_conf=dict(losses=[dict(nodes="path")], hard_weight=0.5),
            )
        )
    )
    return path


def merge(
    kd_config: Path, asr_config: Path, command: str = "merge", *more: str
) -> Path:
    output = asr_config.parent / "exp" / "train.yaml"
    options = ["--kd_config", kd_config, "--asr_config", asr_config, *more]
    preset.main(list(map(str, [command, *options, "--output_file", output])))
    return output


def sparse(kd_config: Path, config: Path, tokens: str = "<blank>\na\n") -> Path:
    preset_of_pruning = yaml.safe_load(kd_config.read_text())
    preset_of_pruning["kd_conf"]["pruning"] = PRUNING
    kd_config.write_text(yaml.safe_dump(preset_of_pruning))
    token_list = config.parent / "tokens.txt"
    token_list.write_text(tokens)
    return merge(kd_config, config, "sparse", "--token_list", str(token_list))


def test_options_for_kd_set(kd_config: Path, capsys):
    preset.main(["options", "--kd_config", str(kd_config)])
    assert capsys.readouterr().out == "--nbest 4 --weights posterior\n"


def test_a_training_configuration(kd_config: Path, tmp_path: Path):
    asr_config = tmp_path / "train.yaml"
    asr_config.write_text(
        "max_epoch: 3\nkd_conf:\n    rate: pool\n    hard_weight: 2\n"
    )
    output = merge(kd_config, asr_config)
    losses = [dict(nodes="path")]
    assert yaml.safe_load(output.read_text()) == dict(
        max_epoch=3, kd_conf=dict(rate="pool", hard_weight=0.5, losses=losses)
    )
    assert output.read_text().startswith(f"# {asr_config} with {kd_config}\n")
    assert [path.name for path in output.parent.iterdir()] == ["train.yaml"]
    assert list(yaml.safe_load(output.read_text())) == ["max_epoch", "kd_conf"]


def test_options_of_training(kd_config: Path, tmp_path: Path):
    training = dict(max_epoch=8, optim_conf=dict(lr=0.1), scheduler=None)
    kd_config.write_text(yaml.safe_dump(dict(training=training)))
    asr_config = tmp_path / "train.yaml"
    asr_config.write_text(
        "max_epoch: 3\noptim_conf: {lr: 1, eps: 2}\nscheduler: warmuplr\n"
    )
    assert yaml.safe_load(merge(kd_config, asr_config).read_text()) == dict(
        max_epoch=8, optim_conf=dict(lr=0.1, eps=2), scheduler=None, kd_conf={}
    )


def test_a_trained_model_is_continued(kd_config: Path, tmp_path: Path, caplog):
    """Its config.yaml's options of model and training are kept, the rest is not."""
    stays = dict(
        max_epoch=3,
        seed=1,
        optim="adam",
        encoder_conf=dict(output_size=4),
        model_conf=dict(ctc_weight=0.3),
        frontend_conf=dict(fs="8k"),
        normalize="global_mvn",
        normalize_conf=dict(stats_file="stats.npz"),
        ctc_conf={},
        valid_batch_type=None,
    )
    goes = dict(
        config="conf/train.yaml",
        output_dir="exp/asr",
        ngpu=4,
        dist_rank=0,
        resume=True,
        init_param=["x.pth"],
        train_data_path_and_name_and_type=[["wav.scp", "speech", "sound"]],
        valid_shape_file=["shape"],
        token_list=["<blank>", "a"],
        multiple_iterator=True,
        teacher_config=["exp/teacher/config.yaml"],
        kd_conf=dict(hard_weight=0.1),
        distributed=True,
        version="202412",
        an_option_of_another_version=1,
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**stays, **goes}))
    written = yaml.safe_load(sparse(kd_config, config).read_text())
    kd_conf = dict(losses=[dict(nodes="path")], hard_weight=0.5, pruning=PRUNING)
    assert written == dict(stays, kd_conf=kd_conf)
    message = "left out, as unknown to this ESPnet: an_option_of_another_version"
    assert message in caplog.text
    with pytest.raises(SystemExit, match="tokens.txt: must be the token list of"):
        sparse(kd_config, config, "<blank>\nb\n")


def test_only_a_trained_model_is_continued_and_only_with_pruning(
    kd_config: Path, tmp_path: Path
):
    config = tmp_path / "train.yaml"
    config.write_text("max_epoch: 3\n")
    with pytest.raises(
        SystemExit, match="train.yaml: must be the config.yaml of a trained"
    ):
        sparse(kd_config, config)
    config.write_text("model_conf: {}\n")
    kd_config.write_text("kd_conf: {losses: [{nodes: path}]}\n")
    with pytest.raises(SystemExit, match="kd.yaml: kd_conf.pruning is missing"):
        merge(kd_config, config, "sparse", "--token_list", "tokens.txt")


def test_a_preset_without_losses(tmp_path: Path, capsys):
    empty, asr_config = tmp_path / "none.yaml", tmp_path / "train.yaml"
    empty.write_text("# nothing\n")
    asr_config.write_text("max_epoch: 3\n")
    preset.main(["options", "--kd_config", str(empty)])
    assert capsys.readouterr().out == "\n"
    config = yaml.safe_load(merge(empty, asr_config).read_text())
    assert config == dict(max_epoch=3, kd_conf={})


@pytest.mark.parametrize(
    "text, message",
    [
        ("kd_confs: {}\n", "kd.yaml: kd_confs: no such section; known: .*'kd_conf'"),
        ("kd_conf: {lamda: 1}\n", "kd.yaml: kd_conf.lamda: no such field; known"),
        (
            "kd_conf: {losses: [{nodes: paths}]}\n",
            r"kd.yaml: kd_conf.losses\[0\]: nodes: 'paths' is not one of",
        ),
        ("kd_conf: {\n", "preset: while parsing"),
    ],
)
def test_mistakes_are_refused_with_the_file(tmp_path: Path, text: str, message: str):
    path = tmp_path / "kd.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        preset.main(["options", "--kd_config", str(path)])


def test_a_missing_preset():
    with pytest.raises(SystemExit, match="preset: .*No such file.*none.yaml"):
        preset.main(["options", "--kd_config", "none.yaml"])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_presets_of_this_package(path: Path):
    sections = read_preset(str(path))
    losses = parse_kd_conf(sections.get("kd_conf") or {}).losses
    assert bool(losses) == (path.stem not in ("sequence", "error_weighted"))
    head = path.read_text().partition("\nkd_")[0]
    assert re.search(rf"--(kd|sparse)_config conf/kd/{path.name}\b", head), "no command"
    known = {action.dest for action in kd_set.get_parser()._actions}
    assert set(sections.get("kd_set") or {}) <= known
