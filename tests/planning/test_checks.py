"""Faults of a run of kd.sh that are found before its first stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_kd.bin.check import main
from espnet_kd.planning.chain import Chain
from espnet_kd.planning.checks import faults

TOKENS = ["<blank>", "<unk>", "a", "b", "<sos/eos>"]
ATTENTION = {"encoder": "conformer", "decoder": "transformer"}
TRANSDUCER = {
    "encoder_conf": {"body_conf": [{"block_type": "conformer"}]},
    "joint_network_conf": {"joint_space_size": 8},
}
TRAINED = {"token_list": TOKENS, "ctc_conf": {}, "frontend_conf": {"fs": 16000}}
PRESET = {"kd_conf": {"losses": [{"nodes": "tokens"}]}}
# Stage 10 of a dropped-in recipe without faults.
STAGE_10 = dict(
    wanted="10",
    data_feats="dump/raw",
    train_set="train",
    valid_set="valid",
    fs="16k",
    token_type="char",
    token_dir="data/token_list/char",
    token_list="data/token_list/char/tokens.txt",
    asr_task="asr",
    asr_config="conf/student.yaml",
    asr_exp="exp/student",
    asr_stats_dir="exp/stats",
    teacher_exp="exp/teacher",
    teacher_model="valid.acc.ave.pth",
    kd_config="conf/kd.yaml",
    kd_data="dump/raw/train_kd",
    kd_exp="exp/student_kd",
    inference_asr_model="valid.acc.ave.pth",
    ngpu="1",
    num_splits_asr="1",
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Path:
    """A recipe folder that is ready for stage 10."""
    monkeypatch.chdir(tmp_path)
    files = {
        "conf/student.yaml": yaml.safe_dump(ATTENTION),
        "conf/kd.yaml": yaml.safe_dump(PRESET),
        "exp/teacher/config.yaml": yaml.safe_dump({**ATTENTION, **TRAINED}),
        "exp/teacher/valid.acc.ave.pth": "weights",
        "data/token_list/char/tokens.txt": "\n".join(TOKENS) + "\n",
        "dump/raw/valid/wav.scp": "",
        "dump/raw/train_kd/wav.scp": "",
        "dump/raw/train_kd_shapes/speech_shape": "",
        "dump/raw/train_kd_shapes/text_shape.char": "",
        "exp/stats/valid/speech_shape": "",
        "exp/stats/valid/text_shape.char": "",
    }
    for name, text in files.items():
        write(name, text)
    return tmp_path


def write(name: str, text: str | dict) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))


def teacher(**changes) -> None:
    write("exp/teacher/config.yaml", {**ATTENTION, **TRAINED, **changes})


def loss(**fields) -> None:
    write("conf/kd.yaml", {"kd_conf": {"losses": [fields]}})


def found(**changes: str) -> list[str]:
    return faults(Chain(**{**STAGE_10, **changes}))


def test_a_recipe_without_faults(recipe: Path):
    assert found() == []


@pytest.mark.parametrize(
    "change, options, message",
    [
        (None, {"asr_config": "conf/x.yaml"}, "--asr_config conf/x.yaml: not found"),
        (None, {"kd_config": "conf/x.yaml"}, "--kd_config conf/x.yaml: not found"),
        (None, {"kd_config": ""}, "--kd_config is needed for stage 10"),
        (None, {"teacher_exp": ""}, "--teacher_exp (a trained teacher) or"),
        (None, {"teacher_exp": "exp/x"}, "exp/x/config.yaml: not found"),
        (None, {"teacher_model": "1epoch.pth"}, "exp/teacher/1epoch.pth: not found"),
        (None, {"pretrained_model": "exp/x.pth:a:b"}, "exp/x.pth: not found"),
        (None, {"fs": "8k"}, "exp/teacher/config.yaml was trained on 16000 Hz audio"),
        (None, {"teacher_weights": "1 2"}, "--teacher_weights: 2 weights for 1"),
        (
            None,
            {"kd_args": "--kd_conf rate=mean"},
            "kd_conf: rate: 'mean' is not one of",
        ),
        (None, {"asr_task": "asr_transducer"}, "a configuration of task asr; give"),
        (
            lambda: write("conf/student.yaml", "a: [\n"),
            {},
            'in "conf/student.yaml", line 2',
        ),
        (
            lambda: write("exp/teacher/config.yaml", ""),
            {},
            "exp/teacher/config.yaml: must be a mapping",
        ),
        (
            lambda: teacher(token_list=None),
            {},
            "exp/teacher/config.yaml: token_list is missing",
        ),
        (None, {"fs": "none"}, "--fs none: must be a number of Hz"),
        (
            lambda: write("conf/student.yaml", "just words\n"),
            {},
            "--asr_config: conf/student.yaml: must be a mapping",
        ),
        (
            lambda: write("conf/kd.yaml", {"kd_config": {}}),
            {},
            "conf/kd.yaml: kd_config: no such section",
        ),
        (
            lambda: loss(nodes="lattice"),
            {},
            "kd_conf.losses[0].nodes: 'lattice' is not in every model (the student: "
            "['frames', 'sequence', 'tokens']",
        ),
        (
            lambda: write("conf/student.yaml", {**ATTENTION, "decoder": None}),
            {},
            "'tokens' is not in every model (the student: ['frames', 'sequence']",
        ),
        (
            lambda: teacher(model_conf={"ctc_weight": 1.0}),
            {},
            "exp/teacher/config.yaml: ['frames', 'sequence']",
        ),
        (
            lambda: teacher(token_list=[*TOKENS[:3], "c", "<sos/eos>"]),
            {},
            "they first differ at index 3: 'b' and 'c'",
        ),
        (
            lambda: teacher(ctc_conf=None) or write("exp/teacher/config.yaml", "a: 1"),
            {},
            "exp/teacher/config.yaml: has neither `joint_network_conf`",
        ),
        (
            lambda: teacher(input_size=80),
            {},
            "exp/teacher/config.yaml reads features",
        ),
        (
            lambda: [
                loss(nodes="frames"),
                teacher(encoder_conf={"input_layer": "conv2d6"}),
            ],
            {},
            "frame rates: the student makes 31.25 encoder frames per second and "
            "exp/teacher/config.yaml 20.83",
        ),
        (
            lambda: loss(nodes="sequence"),
            {"ngpu": "4"},
            "--ngpu 4: nodes: sequence (conf/kd.yaml) compares",
        ),
        (
            lambda: write("data/token_list/char/tokens.txt", "<blank>\n<unk>\na\na\n"),
            {},
            "data/token_list/char/tokens.txt: the token 'a' occurs twice",
        ),
        (
            lambda: Path("dump/raw/train_kd/wav.scp").unlink(),
            {},
            "dump/raw/train_kd/wav.scp: not found; run stage 8 of kd.sh first",
        ),
        (
            lambda: Path("exp/stats/valid/text_shape.char").unlink(),
            {},
            "exp/stats/valid/text_shape.char: not found; run stage 4 of kd.sh, or its "
            "equivalent in asr.sh, first",
        ),
        (None, {"teacher_weights": "0"}, "--teacher_weights 0: must be numbers above"),
        (
            None,
            {"kd_args": "--kd_conf init_from_teacher.teacher_index=1"},
            "kd_conf.init_from_teacher.teacher_index: 1 must be below 1",
        ),
    ],
)
def test_fault(recipe: Path, change, options: dict, message: str):
    if change is not None:
        change()
    assert any(message in fault for fault in found(**options)), found(**options)


def test_all_faults_are_found_at_once(recipe: Path):
    teacher(token_list=TOKENS[:-1], input_size=80)
    faults = found(asr_config="conf/x.yaml", teacher_weights="1 2")
    for part in ("conf/x.yaml", "token_list:", "reads features", "2 weights"):
        assert sum(part in fault for fault in faults) == 1, faults


def test_matching_models_have_no_faults(recipe: Path):
    """Integer ratios of frame rates, which sequence-level KD does not need."""
    loss(nodes="frames")
    teacher(encoder_conf={"input_layer": "conv2d8"})
    assert found() == []
    write("conf/kd.yaml", {"kd_set": {"nbest": 4}})  # only text is distilled
    teacher(token_list=["<blank>", "x"], encoder_conf={"input_layer": "conv2d6"})
    assert found() == []
    write("conf/kd.yaml", {"kd_conf": {"losses": [{"nodes": ["frames", "lattice"]}]}})
    teacher()
    assert found() == []  # of a list, the nodes that both have


def test_options_change_a_configuration(recipe: Path):
    loss(nodes="frames")
    write("conf/student.yaml", {**ATTENTION, "model_conf": {"ctc_weight": 0.0}})
    assert "'frames' is not in every model" in found()[0]
    assert found(asr_args="--max_epoch 3 --model_conf ctc_weight=0.3") == []


def test_the_student_with_kd_is_merged_as_it_is_trained(recipe: Path):
    """From asr_config, the preset's `training` and `kd_conf`, asr_args and kd_args."""
    frames = {"losses": [{"nodes": "frames"}]}
    no_ctc = {**ATTENTION, "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1}}
    write("conf/student.yaml", no_ctc)
    write("conf/kd.yaml", {"kd_conf": frames})
    assert "'frames' is not in every model" in found()[0]
    assert found(kd_args="--model_conf ctc_weight=0.3") == []
    training = {"model_conf": {"ctc_weight": 0.3}}
    write("conf/kd.yaml", {"kd_conf": frames, "training": training})
    assert found() == []
    write("conf/kd.yaml", {"kd_conf": {"rate": "pool"}})
    write("conf/student.yaml", {**no_ctc, "kd_conf": frames})
    (fault,) = found(kd_args="--kd_conf tolerance=0.1")
    place = "--kd_config conf/kd.yaml, --kd_args --kd_conf tolerance=0.1: "
    assert fault.startswith(place + "kd_conf.losses[0].nodes: 'frames' is not")


def test_a_student_identified_only_by_kd_tag(recipe: Path):
    """Decoding does not need a preset."""
    write("exp/student_kd/valid.acc.ave.pth", "weights")
    options = dict(wanted="12", kd_config="", teacher_exp="")
    assert found(**options, kd_tag="essence") == []
    assert found(**options) == ["nothing is trained: run stages 5, 9, 10 and 11 first"]


@pytest.mark.parametrize("token_type, stages", [("word", "8"), ("char", "8 10")])
def test_symbols_are_needed_where_they_are_read(recipe: Path, token_type, stages):
    """A training splits words and word pieces without them."""
    for name in ("raw/train/wav.scp", "raw/train/text"):
        write(f"dump/{name}", "")
    Path("dump/raw/train_kd_shapes/text_shape.char").rename(
        f"dump/raw/train_kd_shapes/text_shape.{token_type}"
    )
    options = dict(token_type=token_type, nlsyms_txt="conf/nlsyms.txt")
    for stage in ("8", "10"):
        given = found(**options, wanted=stage)
        assert ("conf/nlsyms.txt: not found" in "".join(given)) == (stage in stages)


def test_a_folder_may_look_like_a_pattern(recipe: Path):
    for name in ("wav.scp", "text"):
        write(f"dump/raw/train/{name}", "")
    write("conf/kd.yaml", {"kd_set": {"labelled_targets": "both"}})
    folder = "exp/teacher_decode/t[1]"
    options = dict(wanted="8", decode_dir=folder)
    assert "hypotheses.*.jsonl: not found" in found(**options)[0]
    write(f"{folder}/train/hypotheses.1.jsonl", "")
    assert found(**options) == []


def test_a_preset_chooses_the_checkpoint(recipe: Path):
    training = {"best_model_criterion": [["valid", "wer", "min"]]}
    write("conf/kd.yaml", {**PRESET, "training": training})
    options = dict(wanted="10 12", eval_sets="valid")
    assert "give valid.wer.ave.pth" in found(**options)[0]
    assert found(**options, inference_asr_model="valid.wer.ave.pth") == []


def test_a_file_made_by_an_earlier_stage_is_not_a_fault(recipe: Path):
    Path("dump/raw/train_kd/wav.scp").unlink()
    for name in ("wav.scp", "text"):
        write(f"dump/raw/train/{name}", "")
    assert found(wanted="8 10") == []
    Path("data/token_list/char/tokens.txt").unlink()
    assert "tokens.txt: not found; run stage 3" in found(wanted="8 10")[0]
    own = "conf/own_tokens.txt"  # not made by any stage
    given = found(wanted="3 8 10", teacher_train_set="train", token_list=own)
    assert f"{own}: not found" in given


def test_the_checkpoint_is_one_that_training_writes(recipe: Path):
    """A transducer has no accuracy; kd.sh used to fail in stage 12."""
    write("conf/student.yaml", TRANSDUCER)
    teacher(**TRANSDUCER)
    loss(nodes="path")
    options = dict(asr_task="asr_transducer", wanted="10 12", eval_sets="valid")
    (fault,) = found(**options)
    assert "--inference_asr_model valid.acc.ave.pth" in fault
    assert "give valid.loss.ave.pth or train.loss.ave.pth" in fault
    write("conf/student.yaml", {**TRANSDUCER, "best_model_criterion": [["valid", "x"]]})
    assert "give valid.x.ave.pth" in found(**options)[0]
    assert found(**options, inference_asr_model="valid.x.ave.pth") == []


def test_a_token_list_is_read_as_espnet_reads_it(recipe: Path):
    tokens = [*TOKENS[:-1], "c\u2028d", "e\x85f", TOKENS[-1]]
    text = "".join(f"{token}\n" for token in tokens).replace("a\n", "a \r\n")
    write("data/token_list/char/tokens.txt", text)
    teacher(token_list=tokens)
    assert found() == []


def test_the_number_of_averaged_checkpoints(recipe: Path):
    options = dict(
        wanted="10 12",
        eval_sets="valid",
        inference_asr_model="valid.acc.ave_10best.pth",
    )
    assert found(**options) == []
    write("conf/student.yaml", {**ATTENTION, "keep_nbest_models": [1, 5]})
    (fault,) = found(**options)
    assert "valid.acc.ave_10best.pth: training with conf/student.yaml and" in fault
    assert "keep_nbest_models is [1, 5]" in fault
    assert found(**options, asr_args="--keep_nbest_models 10") == []


def test_a_training_of_asr_sh_has_ended(recipe: Path):
    write("exp/student_kd/config.yaml", ATTENTION)
    (fault,) = found()
    assert fault == (
        "exp/student_kd holds a training that kd.sh did not begin and that has not "
        "ended: end it, or delete the folder"
    )
    write("exp/student_kd/valid.acc.ave_3best.pth", "weights")
    assert found() == []


def test_lm_and_ngram(recipe: Path):
    for folder in ("exp/student", "exp/lm"):
        write(f"{folder}/config.yaml", {"token_list": TOKENS[1:]})
    options = dict(
        wanted="12",
        eval_sets="valid",
        use_lm="true",
        lm_exp="exp/lm",
        inference_lm="valid.loss.ave.pth",
        use_ngram="true",
        ngram_exp="exp/ngram",
        inference_ngram="3gram.bin",
    )
    lm = Path("exp/lm/config.yaml").read_text()
    write("exp/lm/config.yaml", "")
    fault = "--lm_exp: exp/lm/config.yaml: must be a mapping of options to values"
    assert fault in found(**options)
    write("exp/lm/config.yaml", lm)
    assert sorted(found(**options)) == [
        "exp/lm/config.yaml: its token list differs from "
        "data/token_list/char/tokens.txt; train an LM with that list, or give "
        "--use_lm false",
        "exp/lm/valid.loss.ave.pth: not found",
        "exp/ngram/3gram.bin: not found",
    ]


def test_the_sparse_student(recipe: Path):
    """It is its own teacher: an attention model has no lattice."""
    names = ("train/speech_shape", "train/text_shape.char", "valid/speech_shape")
    for name in (*(f"exp/stats/{each}" for each in names), "dump/raw/train/wav.scp"):
        write(name, "")
    write("dump/raw/train/text", "")
    options = dict(
        wanted="11",
        teacher_train_set="train",
        teacher_stats_dir="exp/stats",
        sparse_config="conf/sparse.yaml",
        sparse_exp="exp/sparse",
    )
    write("conf/sparse.yaml", {"kd_conf": {"losses": [{"nodes": "lattice"}]}})
    lacking, unfit = found(**options)
    assert "--sparse_config conf/sparse.yaml: kd_conf.pruning is missing" in lacking
    assert "'lattice' is not in every model" in unfit
    write("conf/sparse.yaml", {"kd_conf": {"pruning": {"sparsity": 0.5, "end": 9}}})
    assert found(**options) == []
    # docs/sparse.md: without the quotes YAML 1.1 reads 2:4 as 124.
    for pattern, number in (('"2:4"', 0), ("2:4", 1)):
        args = f"--kd_conf pruning.pattern={pattern}"
        assert len(found(**options, sparse_args=args)) == number


@pytest.mark.parametrize(
    "preset, args, message",
    [
        ({"nbst": 4}, "", "unrecognized arguments: --nbst 4"),
        ({"weights": "equal"}, "", "argument --weights: invalid choice: 'equal'"),
        ({"nbest": 4}, "--max_wer -1", "max_wer=-1.0: "),
        ({"nbest": 4}, '--max_wer "1', "argument --max_wer: invalid float value"),
    ],
)
def test_options_of_the_kd_set(recipe: Path, capsys, preset, args, message):
    """Stage 8 comes after the decoding of stage 6."""
    for name in ("wav.scp", "text"):
        write(f"dump/raw/train/{name}", "")
    write("dump/raw/train_kd/stats.json", "{}")
    given = {**STAGE_10, "wanted": "8 10"}
    assert main([f"{name}={value}" for name, value in given.items()]) == 0
    write("conf/kd.yaml", {"kd_set": {"labelled_targets": "reference", **preset}})
    given["kd_set_args"] = args
    assert main([f"{name}={value}" for name, value in given.items()]) == 1
    (fault,) = capsys.readouterr().err.splitlines()
    assert fault.startswith("Error: --kd_config conf/kd.yaml, --kd_set_args: ")
    assert message in fault


def test_faults_are_reported_if_the_estimate_fails(recipe: Path, capsys):
    write("dump/raw/train/utt2num_samples", "")
    given = {**STAGE_10, "all_sets": "train", "fs": "none", "kd_tag": "x"}
    assert main(["--dry_run", *(f"{k}={v}" for k, v in given.items())]) == 1
    output = capsys.readouterr()
    assert "No estimate: " in output.out and "--fs none: must be" in output.err
    given = {**STAGE_10, "all_sets": "train", "teacher_train_set": "train"}
    assert main(["--dry_run", *(f"{k}={v}" for k, v in given.items())]) == 0
    assert "dump/raw/train/utt2num_samples is empty" in capsys.readouterr().out


def test_no_torch_is_imported(recipe: Path):
    """The check runs at each start of kd.sh, so it must be fast."""
    words = [f"{name}={value}" for name, value in STAGE_10.items()]
    code = (
        "import sys; from espnet_kd.bin.check import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch' in sys.modules) * 7)"
    )
    repo = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"PYTHONPATH": str(repo)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
