"""Every configuration file of every recipe is used as kd.sh would use it.

A model of full size is built and its parameters are counted. The same configuration,
made small by options (`REDUCTIONS`), trains for two updates; then, with the KD settings
beside it, for two more, with the models trained before as teachers. Search
configurations and the options in the recipes' scripts are read by the parsers that they
are meant for.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from espnet_kd.bin import kd_set, preset
from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.config.presets import SECTIONS, read_preset
from tests.recipes.running import NO_STAGE
from tests.tasks.recipe import TOKENS, Recipe, write_audio

REPO = Path(__file__).parents[2]
RECIPES = sorted(path.parent for path in REPO.glob("egs/*/asr1/conf"))
FILES = sorted(  # links (conf/kd) are not followed
    [path for recipe in RECIPES for path in recipe.glob("conf/**/*.yaml")]
)
PRESETS = sorted(REPO.glob("conf/kd/*.yaml"))
PRESETS_WITH = REPO / "egs" / "fsdd" / "asr1" / "conf"  # models that presets train

# The largest that a value may be, by option and, after a colon, its kind of block. A
# configuration with a new kind of block must add it here.
REDUCTIONS = {
    "encoder:conformer": dict(
        output_size=8,
        attention_heads=2,
        linear_units=8,
        num_blocks=1,
        cnn_module_kernel=3,
    ),
    "encoder:transformer": dict(
        output_size=8, attention_heads=2, linear_units=8, num_blocks=1
    ),
    "encoder:rnn": dict(hidden_size=8, output_size=8, num_layers=2),
    "encoder:vgg_rnn": dict(hidden_size=8, output_size=8, num_layers=1),
    "encoder:torchaudiohubert": dict(
        extractor_conv_layer_config=[[8, 10, 5], *[[8, 3, 2]] * 4, *[[8, 2, 2]] * 2],
        encoder_embed_dim=8,
        encoder_num_heads=2,
        encoder_num_layers=1,
        encoder_ff_interm_features=8,
        encoder_pos_conv_kernel=4,
        encoder_pos_conv_groups=2,
        mask_length=2,
        mask_channel_length=2,
        num_classes=4,
        final_dim=4,
    ),
    "encoder:asr_transducer": dict(conv_size=4),
    "block:conformer": dict(
        hidden_size=8, linear_size=8, heads=2, conv_mod_kernel_size=3, num_blocks=1
    ),
    "postencoder:length_adaptor": {},
    "decoder:transformer": dict(attention_heads=2, linear_units=8, num_blocks=1),
    "decoder:rnn": dict(hidden_size=8, num_layers=1),
    "decoder:transducer": dict(hidden_size=8, num_layers=1),
    "decoder:None": {},
    "attention:location": dict(adim=8, aconv_chans=2, aconv_filts=3),
    "predictor:rnn": dict(embed_size=8, hidden_size=8, num_layers=1),
    "joint_net": dict(joint_space_size=8),
    "joint_network": dict(joint_space_size=8),
    "frontend:default": {},
    "frontend:None": {},
}
# S3PRL downloads its encoders: noise of the same width replaces their features.
# Parameters in millions, as S3PRL 0.4.18 builds them.
S3PRL = {"wavlm_base": 94.37}
S3PRL_WIDTH = 768
TWO_UPDATES = dict(
    max_epoch=1, num_iters_per_epoch=2, accum_grad=1, num_workers=0, log_interval=1
)
QUIET = dict(use_tensorboard=False, use_matplotlib=False, num_att_plot=0)


class Config(NamedTuple):
    """A training configuration."""

    path: Path
    values: dict

    @property
    def task(self) -> str:
        """ESPnet's name of the task that reads it."""
        return "asr_transducer" if "joint_network_conf" in self.values else "asr"

    @property
    def task_class(self) -> type:
        from espnet_kd.tasks.asr import ASRKDTask
        from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask

        return ASRKDTask if self.task == "asr" else ASRTransducerKDTask

    @property
    def upstream(self) -> str | None:
        """The encoder of S3PRL that is its frontend."""
        if self.values.get("frontend") != "s3prl":
            return None
        return self.values["frontend_conf"]["frontend_conf"]["upstream"]

    @property
    def without_downloads(self) -> list[str]:
        """Options for features in place of S3PRL's."""
        return ["--input_size", str(S3PRL_WIDTH)] if self.upstream else []


def kind_of(path: Path) -> str:
    """What a file configures, by its content."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if values.keys() <= set(SECTIONS):
        return "kd"
    return "training" if "optim" in values or "max_epoch" in values else "search"


def of_kind(kind: str) -> list[Path]:
    return [path for path in FILES if kind_of(path) == kind]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO / "egs" if path in FILES else REPO))


@cache
def config_of(path: Path) -> Config:
    return Config(path, yaml.safe_load(path.read_text(encoding="utf-8")))


def smaller(kind: str, values: dict, config: Config) -> dict:
    """The options of a block that are above the limits of `REDUCTIONS`."""
    assert kind in REDUCTIONS, (
        f"{config.path}: no reduction for {kind}; add one to REDUCTIONS of "
        f"{Path(__file__).name}"
    )
    return {
        name: most
        for name, most in REDUCTIONS[kind].items()
        if not isinstance(values.get(name), int) or values[name] > most
    }


def with_prefix(prefix: str, values: dict) -> list[str]:
    """NAME=VALUE after the option of a block; JSON is YAML in a line."""
    pairs = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return [word for pair in pairs for word in (f"--{prefix}_conf", pair)]


def reductions(config: Config) -> list[str]:
    """Options that make the model of a configuration small."""
    values, words = config.values, config.without_downloads

    def reduce(option: str, kind: str, conf: dict, prefix: str = "") -> None:
        small = smaller(kind, conf, config)
        words.extend(with_prefix(option, {prefix + k: v for k, v in small.items()}))

    def block(option: str, default: str | None, label: str = "") -> None:
        kind = values.get(option, default)
        reduce(option, f"{label or option}:{kind}", values.get(f"{option}_conf") or {})

    if not config.upstream:
        block("frontend", "default")
    if config.task == "asr":
        block("encoder", "rnn")
        block("decoder", None)
        if values.get("postencoder"):
            block("postencoder", None)
        attention = (values.get("decoder_conf") or {}).get("att_conf")
        if values.get("decoder") == "rnn":
            kind = (attention or {}).get("atype", "location")
            reduce("decoder", f"attention:{kind}", attention or {}, "att_conf.")
        if values.get("decoder") == "transducer":
            reduce("joint_net", "joint_net", values.get("joint_net_conf") or {})
        return words
    encoder = values["encoder_conf"]
    kind = "encoder:asr_transducer"
    reduce("encoder", kind, encoder.get("input_conf") or {}, "input_conf.")
    body = [
        {**each, **smaller(f"block:{each['block_type']}", each, config)}
        for each in encoder["body_conf"]
    ]
    words += with_prefix("encoder", dict(body_conf=body))
    block("decoder", "rnn", "predictor")
    reduce("joint_network", "joint_network", values["joint_network_conf"])
    return words


def plain(**options: object) -> list[str]:
    """--NAME VALUE of each option."""
    words = [(f"--{name}", str(value)) for name, value in options.items()]
    return [word for pair in words for word in pair]


def write_features(data: Path) -> None:
    """Noise as wide as S3PRL's features, 50 frames per second."""
    rng = np.random.default_rng(0)
    scp, shapes = [], []
    for line in (data / "speech_shape").read_text().splitlines():
        name, samples = line.split()
        features = rng.standard_normal((int(samples) // 160, S3PRL_WIDTH))
        np.save(data / f"{name}.npy", features.astype(np.float32))
        scp.append(f"{name} {data / name}.npy\n")
        shapes.append(f"{name} {len(features)},{S3PRL_WIDTH}\n")
    (data / "feats.scp").write_text("".join(scp))
    (data / "feats_shape").write_text("".join(shapes))


class Small:
    """Trains every configuration once, made small, on seconds of noise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_audio(folder / "data")
        write_features(self.data)
        self.tokens = folder / "tokens.txt"
        self.tokens.write_text("".join(f"{token}\n" for token in TOKENS))
        self.trained: dict[Path, Path] = {}

    def words(
        self, output: str, weights: bool = False, features: bool = False
    ) -> list[str]:
        """The options that kd.sh adds to a configuration, for two updates."""
        words = plain(
            token_type="char",
            token_list=self.tokens,
            output_dir=self.folder / output,
            ngpu=0,
            fold_length=80000,
            **TWO_UPDATES,
            **QUIET,
        )
        words += ["--fold_length", "150", "--kd_conf", "true_lengths=true"]
        speech = "feats.scp,speech,npy" if features else "wav.scp,speech,sound"
        for part in ("train", "valid"):
            files = [speech, "text,text,text"]
            if weights and part == "train":
                files.append("kd_weight,kd_weight,text_float")
            for file in files:
                option = f"--{part}_data_path_and_name_and_type"
                words += [option, f"{self.data}/{file}"]
            shapes = "feats_shape" if features else "speech_shape", "text_shape.char"
            for name in shapes:
                words += [f"--{part}_shape_file", str(self.data / name)]
        return words

    def train(self, config: Config, file: Path, output: str, *words: str, **options):
        """Train `file` with what makes `config` small; returns the experiment."""
        name = output.replace("/", "_")
        features = config.upstream is not None
        cmd = ["--config", str(file), *self.words(name, features=features, **options)]
        cmd += words
        config.task_class.main(cmd=[*cmd, *reductions(config)])
        return self.folder / name

    def model(self, path: Path) -> Path:
        """The experiment of a configuration without KD."""
        if path not in self.trained:
            config = config_of(path)
            self.trained[path] = self.train(config, path, name_of(path))
        return self.trained[path]

    def teach(self, path: Path) -> list[str]:
        """The options that name a trained configuration as the teacher."""
        exp = self.model(path)
        files = dict(teacher_config=exp / "config.yaml")
        return plain(**files, teacher_model_file=exp / "1epoch.pth")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return Small(tmp_path_factory.mktemp("configs"))


def updates_of(exp: Path) -> set[int]:
    """Steps that the optimiser of an experiment took, by all of its parameters."""
    checkpoint = torch.load(exp / "checkpoint.pth", **Recipe.all_types())
    states = checkpoint["optimizers"][0]["state"].values()
    return {int(state["step"]) for state in states}


def losses_of(exp: Path) -> dict[str, float]:
    """Losses of the epoch, by name."""
    checkpoint = torch.load(exp / "checkpoint.pth", **Recipe.all_types())
    stats = checkpoint["reporter"]["stats"][1]["train"]
    return {name: stats[name] for name in stats if name.startswith("loss")}


def check(exp: Path) -> dict[str, float]:
    """Two updates, and a finite loss."""
    assert updates_of(exp) == {2}
    losses = losses_of(exp)
    assert math.isfinite(losses["loss"])
    return losses


@pytest.mark.parametrize("path", of_kind("training"), ids=name_of)
def test_a_small_model_trains(small: Small, path: Path):
    check(small.model(path))


@pytest.mark.parametrize("path", of_kind("training"), ids=name_of)
def test_the_number_of_parameters_is_that_of_the_comment(path: Path, tmp_path: Path):
    """The first comment has "<figure> M parameters (vocabulary of <N> tokens)"."""
    config = config_of(path)
    comment = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))[0]
    comment = comment.replace("\n# ", " ")
    stated = re.search(r"([\d.]+) M parameters", comment)
    vocabulary = re.search(r"(\d+) (?:tokens|characters|word pieces)", comment)
    assert stated and vocabulary, (
        f"{path}: its first comment lacks "
        '"<figure> M parameters (vocabulary of <N> tokens)"'
    )
    tokens = [f"t{n}" for n in range(int(vocabulary[1]) - 3)]
    tokens = ["<blank>", "<unk>", *tokens, "<sos/eos>"]
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in tokens))
    words = plain(config=path, token_type="char", token_list=tmp_path / "tokens.txt")
    words += plain(output_dir=tmp_path) + config.without_downloads
    args = config.task_class.get_parser().parse_args(words)
    model = config.task_class.build_model(args)
    millions = sum(each.numel() for each in model.parameters()) / 1e6
    millions += S3PRL[config.upstream] if config.upstream else 0
    rounding = 0.51 * 10 ** -len(stated[1].partition(".")[2])
    assert float(stated[1]) == pytest.approx(millions, rel=0.02, abs=rounding)


def is_pruning(settings: Path) -> bool:
    sections = yaml.safe_load(settings.read_text(encoding="utf-8")) or {}
    return "pruning" in (sections.get("kd_conf") or {})


def settings_with_models() -> list:
    """(KD settings, training configuration of the student) beside each other."""
    pairs = []
    for settings in [*PRESETS, *of_kind("kd")]:
        folder = PRESETS_WITH if settings in PRESETS else settings.parent
        beside = [path for path in of_kind("training") if path.parent == folder]
        if not is_pruning(settings):
            beside = [path for path in beside if "teacher" not in path.stem]
        for path in beside or [None]:
            label = f"{name_of(settings)}-{path.stem if path else 'nothing'}"
            pairs.append(pytest.param(settings, path, id=label))
    return pairs


@pytest.mark.parametrize("settings, path", settings_with_models())
def test_kd_settings_train(small: Small, settings: Path, path: Path | None):
    """Merged with a student's configuration, as stage 10 does; with that of a trained
    model, as stage 11 does, where they prune."""
    assert path is not None, f"{settings}: no training configuration is beside it"
    sections = read_preset(str(settings))
    conf = parse_kd_conf(sections.get("kd_conf") or {})
    config = config_of(path)
    names = name_of(settings), path.stem
    words = []
    if conf.needs_teacher or conf.init_from_teacher:
        words += small.teach(teacher_for(small, conf, path))
    merged = small.folder / ("_".join(names).replace("/", "_") + ".yaml")
    command = ["merge", "--asr_config", str(path)]
    if conf.pruning:
        exp = small.model(path)
        command = ["sparse", "--asr_config", str(exp / "config.yaml")]
        command += ["--token_list", str(small.tokens)]
        words += ["--init_param", str(exp / "1epoch.pth")]
        words += with_prefix("kd", {"pruning.end": 2, "pruning.every": 1})
    files = ["--kd_config", str(settings), "--output_file", str(merged)]
    preset.main([*command, *files])
    weights = "kd_set" in sections
    exp = small.train(config, merged, "_".join(names), *words, weights=weights)
    losses = check(exp)
    compared = [name for name in losses if name.startswith("loss_kd")]
    assert bool(compared) == conf.needs_teacher
    assert all(math.isfinite(losses[name]) for name in compared)


def teacher_for(small: Small, conf: KDConf, path: Path) -> Path:
    """The teacher's configuration beside `path` where it fits the losses, else `path`
    itself; where that does not fit, the settings are for other models: skipped."""
    from espnet_kd.models.branches import nodes_of_model
    from espnet_kd.models.loading import load_stock_model

    def nodes(each: Path) -> set[str]:
        exp = small.model(each)
        return nodes_of_model(load_stock_model(exp / "config.yaml", exp / "1epoch.pth"))

    def serve(each: set[str]) -> bool:
        needed = [{x.nodes} if isinstance(x.nodes, str) else {*x.nodes} for x in losses]
        return all(each & some for some in needed)

    losses = conf.losses
    if not serve(nodes(path)):
        pytest.skip(f"{path.stem} has none of the nodes that the settings compare")
    beside = [each for each in of_kind("training") if each.parent == path.parent]
    teachers = [each for each in beside if "teacher" in each.stem]
    fitting = [each for each in teachers if serve(nodes(path) & nodes(each))]
    return fitting[0] if fitting and not conf.pruning else path


@pytest.mark.parametrize("settings", [*PRESETS, *of_kind("kd")], ids=name_of)
def test_kd_set_takes_its_options(settings: Path, capsys):
    preset.main(["options", "--kd_config", str(settings)])
    words = ["--labelled_data_dir", "data", "--output_dir", "kd"]
    words += ["--token_list", "tokens.txt", *capsys.readouterr().out.split()]
    args = kd_set.get_parser().parse_args(words)
    section = read_preset(str(settings)).get("kd_set") or {}
    given = {name: value for name, value in section.items() if value is not None}
    assert {name: getattr(args, name) for name in given} == given


@pytest.mark.parametrize("path", of_kind("search"), ids=name_of)
def test_a_search_takes_its_options(path: Path, capsys):
    """By the inference of a task that the recipe's models beside it have."""
    inference = {
        "asr": "espnet2.bin.asr_inference",
        "asr_transducer": "espnet2.bin.asr_transducer_inference",
    }
    training = of_kind("training")
    beside = [each for each in training if each.parent == path.parent]
    recipe = path.relative_to(REPO).parts[:3]
    others = [each for each in training if each.relative_to(REPO).parts[:3] == recipe]
    tasks = sorted({config_of(each).task for each in beside or others})
    refusals = []
    words = ["--config", str(path), "--output_dir", "out"]
    words += ["--data_path_and_name_and_type", "wav.scp,speech,sound"]
    for task in tasks:
        try:
            parser = importlib.import_module(inference[task]).get_parser()
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            args = parser.parse_args(words)
        except SystemExit:
            refusals.append(f"{task}: {capsys.readouterr().err[-300:]}")
            continue
        assert {name: getattr(args, name) for name in values} == values
        return
    raise AssertionError(f"{path}: no search of {tasks} takes it: {refusals}")


SCRIPTS = sorted(path for recipe in RECIPES for path in recipe.glob("run*.sh"))
FOR_KD_SH = re.compile(r"run(_[a-z]+\d{4})?\.sh")  # run.sh, run_<paper>.sh


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_options_in_scripts_exist(script: Path):
    """Each is one of kd.sh, of the training or of another command of ours."""
    text = re.sub(r"^\s*#.*\n|\s# .*", "\n", script.read_text(), flags=re.M)
    given = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]+)", text))
    unknown = given - options_of_kd_sh() - options_of_commands()
    assert not unknown


@pytest.mark.parametrize(
    "script", [x for x in SCRIPTS if FOR_KD_SH.fullmatch(x.name)], ids=name_of
)
def test_kd_sh_takes_what_a_script_passes(script: Path):
    """Its own options go to every step, so that no step runs a stage; a report that
    follows has nothing to report."""
    answer = subprocess.run(
        [str(script), *NO_STAGE, "--python", sys.executable],
        cwd=script.parent,
        # With a trained teacher run_yang2022.sh need not download anything.
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPO),
            "TEACHER_EXP": "exp/trained",
        },
        capture_output=True,
        text=True,
    )
    steps = re.findall(r" Done in \d+ seconds: ", answer.stdout)
    assert steps and "Stage " not in answer.stdout, answer.stdout
    refused = re.findall(
        "no such option.*|needs a value.*|are not accepted.*", answer.stderr
    )
    assert not refused


@cache
def options_of_kd_sh() -> set[str]:
    text = (REPO / "egs" / "TEMPLATE" / "asr1" / "kd.sh").read_text()
    declared = text[: text.index("help_message=")]
    names = set(re.findall(r"\b([a-z][a-z0-9_]*)=|\[([a-z][a-z0-9_]*)\]=", declared))
    refused = re.search(r'^refused="([^"]+)"', declared, re.M)[1].split()
    return {a or b for a, b in names} | set(refused)


@cache
def options_of_commands() -> set[str]:
    names = [path.stem for path in REPO.glob("espnet_kd/bin/[!_]*.py")]
    commands = [importlib.import_module(f"espnet_kd.bin.{name}") for name in names]
    parsers = [each.get_parser() for each in commands if hasattr(each, "get_parser")]
    actions = [action for parser in parsers for action in parser._actions]
    words = [word for action in actions for word in action.option_strings]
    return {word.removeprefix("--") for word in words}
