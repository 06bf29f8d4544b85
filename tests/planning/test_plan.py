"""The command: its table, JSON and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espnet_kd.bin import plan

PRESETS = Path(__file__).parents[2] / "conf/kd"
SIZES = [
    *"--hours 100 --unlabelled_hours 860 --vocabulary 256 --longest 12".split(),
    *"--teacher_parameters 95e6 --teacher_width 768 --teacher_joint 640".split(),
    *"--student_parameters 10e6 --student_width 144 --student_joint 320".split(),
    *"--batch_bins 16000000 --max_epoch 10".split(),
]


def stages(capsys, *options: str) -> dict[int, dict]:
    plan.main([*SIZES, *options, "--json"])
    return {s["number"]: s for s in json.loads(capsys.readouterr().out)["stages"]}


def with_preset(capsys, name: str, *options: str) -> dict[int, dict]:
    return stages(capsys, "--kd_config", str(PRESETS / f"{name}.yaml"), *options)


def test_every_figure_has_a_formula(capsys):
    plan.main([*SIZES, "--explain"])
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [r for r in rows if "student with KD" in r]
    explained = text[text.index("Stage 2") :]
    for stage in stages(capsys).values():
        for name in ("disk", "gpu", "cpu", "memory"):
            if stage[name] is not None:
                assert stage[name]["formula"]
    assert explained.count(" = ") == sum(
        stage[name] is not None
        for stage in stages(capsys).values()
        for name in ("disk", "gpu", "cpu", "memory")
    )


def test_the_table_says_that_no_soft_targets_are_stored(capsys):
    plan.main(SIZES)
    text = capsys.readouterr().out
    assert "7 soft targets: none stored, teachers run in stage 10" in text
    assert "If soft targets were stored (not supported yet)" in text


def test_hours_are_proportional_to_the_data(capsys):
    # Without KD no teacher is in memory: 100 h beside 100 + 860 h
    found = stages(capsys)
    ratio = found[10]["gpu"]["value"] / found[9]["gpu"]["value"]
    assert ratio == pytest.approx(9.6)


def test_each_hypothesis_is_a_target(capsys):
    # sequence: 4 hypotheses of 100 + 860 h
    found = with_preset(capsys, "sequence")
    ratio = found[10]["gpu"]["value"] / found[9]["gpu"]["value"]
    assert ratio == pytest.approx(4 * 9.6)
    assert found[10]["memory"]["value"] == found[9]["memory"]["value"]


def test_labelled_audio_with_references_is_not_decoded(capsys):
    # half of the 20 h is the validation set
    kept, decoded = (
        with_preset(capsys, name)[6]["cpu"]["value"]
        for name in ("one_best_path", "sequence")
    )
    assert decoded / kept == pytest.approx((860 + 10 + 100) / (860 + 10))


def test_a_teacher_in_memory_costs_time(capsys):
    without, with_teacher = stages(capsys), with_preset(capsys, "one_best_path")
    assert with_teacher[10]["gpu"]["value"] > without[10]["gpu"]["value"]
    assert "teachers 0.38 GB" in with_teacher[10]["memory"]["formula"]  # 4 x 95 M


def test_sparse_student_has_the_teachers_size(capsys):
    found = stages(capsys, "--sparse_config", str(PRESETS / "sparse.yaml"))
    assert found[11]["disk"] == found[5]["disk"]
    assert found[11]["gpu"]["value"] > found[5]["gpu"]["value"]  # it has a teacher


def test_several_teachers(capsys):
    more = [*SIZES, "--teacher_parameters", "95e6", "30e6"]
    preset = str(PRESETS / "essence.yaml")
    plan.main([*more, "--kd_config", preset, "--json"])
    found = json.loads(capsys.readouterr().out)["stages"]
    assert [s["number"] for s in found].count(5) == 2
    (kd,) = (s for s in found if s["number"] == 10)
    assert "teachers 0.5 GB" in kd["memory"]["formula"]  # 4 x 125 M


def test_speed_perturbation_trains_on_three_copies(capsys):
    found = stages(capsys, *"--speed_perturb_factors 0.9 1.0 1.1".split())
    # 100 h / 0.9 and / 1.1 are written, in files of 12 s with a header of 44 bytes
    samples = 360_000 * (1 / 0.9 + 1 / 1.1) * 16000
    written = 2 * samples + 44 * 2 * 30_000
    assert found[2]["disk"]["value"] == pytest.approx(written)


def test_gpus_share_the_work(capsys):
    one, eight = stages(capsys), stages(capsys, "--ngpu", "8")
    assert eight[9]["gpu"] == one[9]["gpu"]
    assert eight[9]["wall"] == pytest.approx(one[9]["wall"] / 8)
    assert eight[9]["memory"]["value"] < one[9]["memory"]["value"]


def test_too_much_memory_is_reported(capsys):
    plan.main([*SIZES, "--batch_bins", "160000000", "--gpu", "rtx3090"])
    assert "do not fit rtx3090 (24 GB): give less batch_bins" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--student_config", "a.yaml"], "--student_config or --student_parameters"),
        (["--hours", "0"], "--hours"),
        (["--kd_config", "no_such.yaml"], "no_such.yaml"),
    ],
)
def test_faults_are_one_line(options, message):
    with pytest.raises(SystemExit, match=message):
        plan.main([*SIZES, *options])
