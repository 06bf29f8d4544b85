"""Time, memory and disk of a training, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from espnet_kd.planning.machines import CPU_CORE, MACHINES, Machine
from espnet_kd.planning.model_costs import Model, Speech, of_config, of_size
from espnet_kd.planning.training import (
    Settings,
    Teaching,
    batch_seconds,
    lattice_memory,
    settings_of,
    training_disk,
    training_flop,
    training_memory,
    training_time,
)

SPEECH = Speech(rate=16000, seconds=10.0, longest=20.0, labels=4.0)
STUDENT = Model(
    name="student",
    parameters=10_000_000,
    encoder=0.4e9,
    decoder=0.1e9,
    step=0.0,
    activations=30e6,
    longest_activations=40e6,
    frame_rate=25.0,
    vocabulary=1000,
    joint=200,
)
TEACHER = replace(
    STUDENT,
    parameters=100_000_000,
    encoder=3.9e9,
    activations=90e6,
    longest_activations=90e6,
    joint=600,
)
NUMEL = Settings(batch_type="numel", batch_bins=16_000_000, optim="adam", max_epoch=10)
GPU = Machine("gpu", 32e9, 10e12, 20e12, 100e12, 1e12, "made up")


def test_numel_counts_samples_and_tokens_times_vocabulary():
    # 16,000,000 / (16,000 + 4 x 1,000) = 800 s
    assert batch_seconds(NUMEL, SPEECH, 1000).value == 800
    assert batch_seconds(NUMEL, SPEECH, 1000, ngpu=4).value == 200


def test_length_counts_samples_and_tokens():
    settings = replace(NUMEL, batch_type="length", batch_bins=16_004_000)
    assert batch_seconds(settings, SPEECH, 1000).value == pytest.approx(1000)


def test_a_batch_has_at_least_one_utterance():
    settings = replace(NUMEL, batch_bins=1000)
    assert batch_seconds(settings, SPEECH, 1000).value == SPEECH.longest


def test_utterances_of_a_folded_batch_may_all_be_the_longest():
    settings = Settings(batch_size=8)
    assert batch_seconds(settings, SPEECH, 1000).value == 8 * 20


def test_flop_without_a_teacher():
    # Three products of 2 x 0.5 G; a lattice of 25 x (4 x 10 + 1) = 1025 nodes/s, three
    # products of 1000 x 200 each.
    expected = 6 * 0.5e9 + 3 * 2 * 1025 * 200_000
    assert training_flop(STUDENT, SPEECH, None).value == pytest.approx(expected)


def test_flop_with_a_teacher_on_the_lattice():
    # The lean lattice computes the logits twice; the teacher goes forward alone.
    teaching = Teaching((TEACHER,), lattice_reads=1)
    student = 6 * 0.5e9 + 4 * 2 * 1025 * 200_000
    teacher = 2 * 4.0e9 + 2 * 1025 * 600_000
    found = training_flop(STUDENT, SPEECH, teaching).value
    assert found == pytest.approx(student + teacher)


def test_time_is_flop_over_rate_and_bytes_over_bandwidth():
    model = replace(STUDENT, joint=0)
    # 3 GFLOP / (10 T x 0.5) = 0.6 ms; 50 x 30 MB / 1 TB/s = 1.5 ms
    found = training_time(model, NUMEL, SPEECH, 3600.0, GPU, utilisation=0.5)
    assert found.value == pytest.approx(10 * 3600 * 2.1e-3)


def test_amp_makes_products_faster_and_keeps_less():
    model = replace(STUDENT, joint=0)
    settings = replace(NUMEL, use_amp=True)
    # 3 GFLOP / (100 T x 0.5) = 0.06 ms; 0.6 of 1.5 ms
    found = training_time(model, settings, SPEECH, 3600.0, GPU, utilisation=0.5)
    assert found.value == pytest.approx(10 * 3600 * 0.96e-3)


def test_epochs_of_a_number_of_batches():
    settings = replace(NUMEL, num_iters_per_epoch=9)  # 9 x 800 s = 2 h
    free = training_time(STUDENT, NUMEL, SPEECH, 7200.0, GPU)
    counted = training_time(STUDENT, settings, SPEECH, 0.0, GPU)
    assert counted.value == pytest.approx(free.value)


def test_memory_on_one_gpu():
    model = replace(STUDENT, joint=0)
    # CUDA; weights, gradients and Adam's two moments; 40 MB/s x 800 s
    expected = 1e9 + 4 * 4 * 10e6 + 40e6 * 800
    assert training_memory(model, NUMEL, SPEECH).value == pytest.approx(expected)


def test_memory_on_four_gpus_with_buckets_of_gradients():
    model = replace(STUDENT, joint=0)
    expected = 1e9 + 5 * 4 * 10e6 + 40e6 * 200
    found = training_memory(model, NUMEL, SPEECH, ngpu=4).value
    assert found == pytest.approx(expected)


def test_a_dense_lattice_of_the_longest_utterances():
    model = replace(STUDENT, longest_activations=0.0)
    # 800 s x 25 x (4 x 20 + 1) = 1,620,000 nodes; 3 x 1000 logits and 200 units each
    expected = 1e9 + 160e6 + 4 * 1_620_000 * 3200
    assert training_memory(model, NUMEL, SPEECH).value == pytest.approx(expected)


def test_a_teacher_is_weights_and_one_pass():
    dense = Teaching((TEACHER, TEACHER), lattice_reads=1, lean=False)
    plain = replace(STUDENT, longest_activations=0.0)
    alone = training_memory(plain, NUMEL, SPEECH).value
    taught = training_memory(plain, NUMEL, SPEECH, teaching=dense).value
    # a fourth copy of the logits; 2 x 400 MB; a tenth of 90 MB/s x 800 s
    expected = 4 * 1_620_000 * 1000 + 800e6 + 0.1 * 90e6 * 800
    assert taught - alone == pytest.approx(expected)


def test_lean_memory_does_not_grow_with_the_vocabulary():
    nodes = 1e6
    small, large = (lattice_memory(nodes, v, 320, copies=0) for v in (500, 5000))
    assert large < 1.5 * small
    assert large < 0.1 * lattice_memory(nodes, 5000, 320, copies=3)


def test_data_sizes_of_an_experiment():
    settings = Settings(keep_nbest_models=10, criteria=2, optim="adam")
    # 2 x 10 epochs and the latest, 2 averages, checkpoint.pth of weights and 2 moments
    assert training_disk(STUDENT, settings).value == 4 * 10e6 * (21 + 2 + 3)
    short = replace(settings, max_epoch=5)  # no more epochs than there were
    assert training_disk(STUDENT, short).value == 4 * 10e6 * (5 + 2 + 3)


def test_settings_are_those_of_the_yaml():
    settings = settings_of(
        {
            "max_epoch": 7,
            "batch_type": "numel",
            "use_amp": True,
            "keep_nbest_models": [3, 5],
            "best_model_criterion": [["valid", "acc", "max"], ["train", "loss", "min"]],
            "encoder": "conformer",
        }
    )
    assert settings == Settings(
        max_epoch=7,
        batch_type="numel",
        use_amp=True,
        keep_nbest_models=5,
        criteria=2,
    )
    assert settings.precision == "half"


def test_defaults_are_those_of_espnet():
    from espnet2.tasks.asr import ASRTask

    parser = ASRTask.get_parser()
    criteria = len(parser.get_default("best_model_criterion"))
    for name in Settings.__dataclass_fields__:
        if name == "criteria":
            continue
        expected = parser.get_default(name)
        if name == "keep_nbest_models" and isinstance(expected, list):
            expected = max(expected)
        assert getattr(Settings(), name) == expected, name
    assert Settings().criteria == criteria


@pytest.mark.parametrize("name, width", [("teacher", 128), ("student", 48)])
def test_size_alone_is_within_a_third(name, width):
    """Against counts of the models of egs/fsdd."""
    speech = Speech(rate=8000, seconds=2.5, longest=2.5, labels=5.7)
    config = Path(__file__).parents[2] / f"egs/fsdd/asr1/conf/train_{name}.yaml"
    counted = of_config(config, 32, speech)
    rate, joint = counted.frame_rate, counted.joint
    model = of_size(counted.parameters, width, 32, joint, rate)
    assert 2 / 3 < model.multiply_adds / counted.multiply_adds < 3 / 2
    assert 2 / 3 < model.activations / counted.activations < 3 / 2


@pytest.mark.parametrize("name", MACHINES)
def test_figures_of_a_gpu(name):
    """No typing errors: rates grow with shorter numbers, memory is not disk."""
    gpu = MACHINES[name]
    assert 10e12 < gpu.fp32 <= gpu.tf32 <= gpu.half < 1000e12
    assert 20e9 < gpu.memory < 200e9
    assert 5e11 < gpu.bandwidth < 5e12
    assert gpu.source and CPU_CORE.fp32 < gpu.fp32
