"""What cannot be distilled is refused before training, with field and remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_kd.bin import asr_transducer_train
from espnet_kd.lattice import has_k2
from espnet_kd.models.joint import LeanJointNetwork
from espnet_kd.tasks.mixin import ConfigurationError
from tests.tasks.recipe import RATE, TOKENS, Recipe, teachers

PATH = dict(kd_conf=dict(losses=[dict(nodes="path")]))
FRAMES = dict(kd_conf=dict(losses=[dict(nodes="frames")]))


def refused(
    recipe: Recipe, message: str, kind: str = "hybrid", ngpu: int = 0, **changes
):
    with pytest.raises(ConfigurationError, match=message):
        recipe.build(kind, ngpu=ngpu, **changes)


def test_mistakes_in_kd_conf(recipe: Recipe):
    refused(recipe, "kd_conf.lamda: no such field", kd_conf=dict(lamda=1))
    loss = dict(nodes="frames", temprature=1)
    message = r"kd_conf.losses\[0\].temprature: no such field; known: .*temperature"
    refused(recipe, message, kd_conf=dict(losses=[loss]))


def test_a_missing_teacher(recipe: Recipe):
    refused(
        recipe, "teacher_config: kd_conf has losses, but .*--teacher_conf", **FRAMES
    )
    model = teachers(recipe.teacher("hybrid"))
    no_config = dict(model, teacher_config=["exp/none/config.yaml"])
    refused(recipe, "exp/none/config.yaml: no such model conf", **no_config, **FRAMES)
    no_file = dict(model, teacher_model_file=["exp/none/valid.pth"])
    refused(recipe, "exp/none/valid.pth: no such checkpoint", **no_file, **FRAMES)


def test_counts_that_differ(recipe: Recipe):
    model = teachers(recipe.teacher("hybrid"))
    one_file = dict(model, teacher_config=model["teacher_config"] * 2)
    message = "teacher_model_file: 1 files for 2 teacher_config; give one for each"
    refused(recipe, message, **one_file, **FRAMES)
    message = "teacher_weight: 2 weights for 1 teachers; give one for each"
    refused(recipe, message, **model, teacher_weight=[1.0, 1.0], **FRAMES)


@pytest.mark.parametrize("weight", [0.0, -1.0, "one", float("nan")])
def test_a_weight_that_is_not_a_positive_number(recipe: Recipe, weight):
    model = teachers(recipe.teacher("hybrid"))
    message = r"teacher_weight: \[.*\] must be numbers above 0; leave a teacher out"
    refused(recipe, message, **model, teacher_weight=[weight], **FRAMES)


def test_other_tokens(recipe: Recipe):
    swapped = list(TOKENS)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    model = teachers(recipe.teacher("hybrid", "swapped", token_list=swapped))
    message = (
        r"token_list: the student has 8 tokens, .*swapped/config.yaml has 8; they "
        r"first differ at index 3: 'b' and 'c'. .*teacher's token list, or use sequence"
    )
    refused(recipe, message, **model, **FRAMES)
    longer = [*TOKENS[:-1], "e", TOKENS[-1]]
    model = teachers(recipe.teacher("hybrid", "longer", token_list=longer))
    refused(recipe, "has 9; .* index 7: '<sos/eos>' and 'e'", **model, **FRAMES)


def test_frame_rates_that_have_no_integer_ratio(recipe: Recipe):
    changes = dict(encoder_conf=dict(input_layer="conv2d6"))
    model = teachers(recipe.teacher("hybrid", "slow", **changes))
    message = (
        "frame rates: the student makes 25.00 .*ratio of 1.5.*; only integer .*hop"
    )
    refused(recipe, message, **model, **FRAMES)
    # Tokens have no frames: the same teacher is fine for them.
    recipe.build("hybrid", kd_conf=dict(losses=[dict(nodes="tokens")]), **model)


def test_another_sampling_rate(recipe: Recipe):
    changes = dict(frontend_conf=dict(fs="16k"))
    model = teachers(recipe.teacher("hybrid", "wideband", **changes))
    message = (
        f"frontend_conf.fs: .* trained on 16000 Hz audio, the student takes {RATE}"
    )
    refused(recipe, message, **model, **FRAMES)


def test_nodes_that_a_model_lacks(recipe: Recipe):
    hybrid = teachers(recipe.teacher("hybrid"))
    message = (
        r"kd_conf.losses\[0\].nodes: 'path' is not in every model \(the student: "
        r"\['frames', 'tokens'\]; .*teacher_hybrid.*needs a transducer|a transducer"
    )
    refused(recipe, message, **hybrid, **PATH)
    refused(recipe, "nodes: 'path'", "asr_transducer", **hybrid, **PATH)
    several = dict(kd_conf=dict(losses=[dict(nodes=["path", "lattice"])]))
    refused(
        recipe, r"nodes: \('path', 'lattice'\) is not in every", **hybrid, **several
    )
    no_ctc = dict(model_conf=dict(auxiliary_ctc_weight=0.0))
    model = teachers(recipe.teacher("asr_transducer"))
    message = "nodes: 'frames' .*`frames` needs a CTC branch"
    refused(recipe, message, "asr_transducer", **model, **FRAMES, **no_ctc)


def test_models_that_read_features(recipe: Recipe):
    changes = dict(frontend=None, input_size=16)
    model = teachers(recipe.teacher("hybrid"))
    message = "input_size: the student reads features, .*; train from raw audio"
    refused(recipe, message, **model, **FRAMES, **changes)
    reader = teachers(recipe.teacher("hybrid", "reader", **changes))
    refused(recipe, "input_size: .*reader/config.yaml reads", **reader, **FRAMES)
    recipe.build("hybrid", weights=True, **changes)  # without a teacher it is accepted


def test_other_models(recipe: Recipe):
    model = teachers(recipe.teacher("hybrid"))
    masked = dict(model="maskctc", decoder="mlm", model_conf=dict(ctc_weight=0.3))
    message = "model: MaskCTCModel cannot be a student; KD works with `model: espnet`"
    refused(recipe, message, **model, **masked, **FRAMES)


def test_data_parallel(recipe: Recipe):
    model = teachers(recipe.teacher("hybrid"))
    message = "ngpu: 2 .* DataParallel.*add --multiprocessing_distributed true"
    refused(recipe, message, ngpu=2, **model, **FRAMES)
    refused(recipe, "ngpu: 2", ngpu=2, weights=True)


def test_hypotheses_separated_by_a_split_set(recipe: Recipe):
    compared = dict(kd_conf=dict(losses=[dict(nodes="sequence")]))
    model = teachers(recipe.teacher("hybrid"))
    message = "nodes: sequence .* separates; set --num_splits_asr 1"
    refused(recipe, message, multiple_iterator=True, **model, **compared)


def test_a_yaml_file_may_name_one_teacher_without_a_list(recipe: Recipe):
    model = recipe.teacher("hybrid")
    names = dict(teacher_config=model.config, teacher_model_file=model.checkpoint)
    student = recipe.build("hybrid", **names, teacher_weight=2, **FRAMES)
    assert len(student.distillation.source.ensemble.models) == 1
    refused(recipe, "no teacher is given", teacher_config=None, **FRAMES)


def test_statistics_can_be_collected_before_there_is_a_teacher(recipe: Recipe):
    stats = dict(collect_stats=True, **teachers())
    assert type(recipe.build("hybrid", **stats)).__name__ == "ESPnetASRModel"


def test_a_refusal_ends_the_command_with_one_line(recipe: Recipe):
    """In a separate process, as a recipe runs it."""
    options = recipe.options("hybrid", "refused", **FRAMES)
    run = subprocess.run(
        [sys.executable, "-m", "espnet_kd.bin.asr_train", *options],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("asr_train: teacher_config: kd_conf has losses, but no")
    assert "Traceback" not in run.stderr
    assert not list((recipe.folder / "refused").glob("*.pth"))


def test_both_commands_end_this_way(recipe: Recipe):
    options = recipe.options("asr_transducer", "refused_too", **PATH)
    with pytest.raises(
        SystemExit, match="asr_transducer_train: teacher_config: kd_conf"
    ):
        asr_transducer_train.main(options)


@pytest.mark.skipif(not has_k2(), reason="the pruned loss needs k2")
@pytest.mark.parametrize(
    "arguments", [dict(padding_idx=7), dict(loss_type="constrained")]
)
def test_a_pruned_loss_that_is_not_ours(recipe: Recipe, arguments: dict):
    """It is left to k2, or refused where `lean_joint` asks for ours."""
    changes = dict(model_conf=dict(k2_pruned_loss_args=arguments))
    (name,) = arguments
    losses = dict(losses=[dict(nodes="path")])
    teacher = teachers(recipe.teacher("asr_transducer"))
    student = recipe.build("pruned", kd_conf=losses, **teacher, **changes)
    assert not isinstance(student.joint_network, LeanJointNetwork)
    with pytest.raises(ValueError, match=f"lean_joint: .*k2_pruned_loss_args.{name}"):
        conf = dict(losses, lean_joint=True)
        recipe.build("pruned", kd_conf=conf, **teacher, **changes)
