"""Counts of real, tiny ESPnet models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from espnet_kd.planning.model_costs import Speech, activations, build, of_config
from espnet_kd.planning.training import settings_of, training_disk
from tests.tasks.recipe import KINDS, RATE, TOKENS, Recipe

SPEECH = Speech(rate=RATE, seconds=2.0, longest=4.0, labels=5.0)


def write(folder: Path, kind: str, **changes) -> Path:
    path = folder / f"{kind}.yaml"
    frontend = dict(n_fft=256, hop_length=80, n_mels=16)
    config = {**KINDS[kind][1], "frontend_conf": frontend, "specaug": None}
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path


@pytest.mark.parametrize("kind", ["hybrid", "ctc", "transducer", "asr_transducer"])
def test_parameters_joint_and_rate(kind, tmp_path):
    config = write(tmp_path, kind)
    model = of_config(config, len(TOKENS), SPEECH)
    stock = Recipe(tmp_path).build(kind, specaug=None)
    assert model.parameters == sum(p.numel() for p in stock.parameters())
    assert model.joint == (12 if "transducer" in kind else 0)
    # 100 frames of features a second, two strides of 2, less the borders
    assert model.frame_rate == pytest.approx(25, abs=1)
    assert (model.step > 0) == (kind == "hybrid")
    assert model.decoder > 0


def saved_tensors(outputs: list[torch.Tensor]) -> dict[int, int]:
    """Bytes by address of a graph's tensors, found by walking it, without hooks."""
    found: dict[int, int] = {}
    seen, waiting = set(), [x.grad_fn for x in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            if isinstance(value, torch.Tensor):
                size = value.numel() * value.element_size()
                found[value.data_ptr()] = max(found.get(value.data_ptr(), 0), size)
    return found


def test_activations_equal_a_walk_of_the_graph(tmp_path):
    model = build(write(tmp_path, "ctc"), len(TOKENS), RATE)
    _, kept = activations(model, SPEECH, 2.0)
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 2 * RATE)
    encoded, _ = model.encode(noise, torch.tensor([2 * RATE]))
    out = [model.ctc.ctc_lo(encoded).log_softmax(-1)]
    parameters = {p.data_ptr() for p in model.parameters()}
    found = saved_tensors(out)
    expected = sum(n for address, n in found.items() if address not in parameters)
    assert kept == pytest.approx(expected, rel=0.02)


def test_a_model_that_cannot_be_built_is_refused_with_a_remedy(tmp_path):
    config = write(tmp_path, "hybrid", encoder_conf={"no_such_option": 1})
    with pytest.raises(ValueError, match="--teacher_parameters or --student_param"):
        of_config(config, len(TOKENS), SPEECH)


def test_data_sizes_of_a_training(tmp_path):
    """An experiment folder after three epochs, two of them kept."""
    recipe = Recipe(tmp_path)
    changes = dict(
        max_epoch=3,
        keep_nbest_models=2,
        optim="adam",
        optim_conf=dict(lr=0.001),
        encoder_conf=dict(output_size=48, linear_units=192),
    )
    exp = recipe.train("ctc", "exp", **changes)
    config = yaml.safe_load((exp / "config.yaml").read_text())
    settings = settings_of(config)
    model = of_config(
        write(tmp_path, "ctc", encoder_conf=config["encoder_conf"]), len(TOKENS), SPEECH
    )
    written = sum(f.stat().st_size for f in exp.glob("*.pth") if not f.is_symlink())
    planned = training_disk(model, settings).value
    # The latest epoch may be one of the best two.
    fewer = replace(settings, keep_nbest_models=1)
    assert written == pytest.approx(planned, rel=0.2) or written == pytest.approx(
        training_disk(model, fewer).value, rel=0.2
    )
