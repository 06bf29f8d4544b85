"""Tiny students as after KD training, some of their weights pruned to zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml

from espnet_kd.compress.sparsity import Blocks, TwoOfFour, lowest, prunable_weights
from espnet_kd.models.loading import load_model
from tests.tasks.recipe import Recipe

MODEL = "valid.loss.ave.pth"
STATS = "exp/stats/train/feats_stats.npz"
# Wide enough that the weights and not their names fill a file.
WIDER = {
    "hybrid": dict(
        encoder_conf=dict(output_size=32, linear_units=64),
        decoder_conf=dict(linear_units=64),
    ),
    "transducer": dict(encoder_conf=dict(output_size=32, linear_units=64)),
    "asr_transducer": dict(decoder_conf=dict(hidden_size=32)),
}
# The 1-best of untrained transducers is empty, but not all of their n-best lists.
BOUNDED = dict(search_type="tsd", max_sym_exp=2)
LENGTHS = dict(maxlenratio=-5, minlenratio=0.1)
SEARCH = {
    "hybrid": dict(beam_size=3, nbest=3, ctc_weight=0.3, **LENGTHS),
    "transducer": dict(beam_size=3, nbest=3, transducer_conf=dict(**BOUNDED, nbest=3)),
    "asr_transducer": dict(beam_size=3, nbest=3, beam_search_config=BOUNDED),
}


def write_recipe(folder: Path) -> Recipe:
    """A recipe folder with audio and statistics of features."""
    recipe = Recipe(folder)
    stats = folder / STATS
    stats.parent.mkdir(parents=True)
    rng = np.random.default_rng(1)
    total, squares = rng.uniform(-900, -600, 16), rng.uniform(10000, 12000, 16)
    np.savez(stats, count=100, sum=total, sum_square=squares)
    return recipe


def write_student(recipe: Recipe, kind: str, pattern: str, name: str) -> Path:
    """An experiment folder with options of KD and a checkpoint that is a link.

    Call it from the recipe folder.

    Args:
        pattern: "dense", "2:4" (what cannot be 2:4 stays dense), or a share of zeros in
            each prunable weight.
    """
    stats = dict(normalize="global_mvn", normalize_conf=dict(stats_file=STATS))
    given = recipe.teacher(kind, name, **stats, **WIDER[kind])
    exp = Path(given.config).parent
    config = yaml.safe_load(Path(given.config).read_text())
    config.update(
        teacher_config=["exp/teacher/config.yaml"],
        teacher_model_file=["exp/teacher/valid.loss.ave.pth"],
        teacher_weight=[],
        kd_conf=dict(pruning=dict(sparsity=0.8, end=100)),
    )
    (exp / "config.yaml").write_text(yaml.safe_dump(config))
    state = torch.load(given.checkpoint)
    for weight in prunable_names(exp, "model.pth"):
        prune(state[weight], pattern)
    torch.save(state, exp / "valid.loss.ave_3best.pth")
    (exp / MODEL).symlink_to("valid.loss.ave_3best.pth")
    return exp


def prunable_names(exp: Path, file: str = MODEL) -> list[str]:
    return list(prunable_weights(load_model(exp / "config.yaml", exp / file)))


def prune(weight: torch.Tensor, pattern: str) -> torch.Tensor:
    """Set the smallest values to zero, in place."""
    if pattern == "2:4" and TwoOfFour().takes(weight.shape):
        units = torch.ones(weight.numel() // 4, dtype=torch.bool)
        weight.masked_fill_(TwoOfFour().mask(weight, units), 0)
    elif pattern not in ("2:4", "dense"):
        scores = Blocks(1, 1).scores(weight)
        mask = lowest(scores, int(float(pattern) * weight.numel()))
        weight.masked_fill_(mask.view(weight.shape), 0)
    return weight


def samples(recipe: Recipe, number: int) -> np.ndarray:
    """Audio of an utterance."""
    return soundfile.read(recipe.data / f"wav/utt{number}.wav", dtype="float32")[0]


def equal_to_the_bit(one: torch.Tensor, other: torch.Tensor) -> bool:
    as_bytes = (np.asarray(x.detach().contiguous()).tobytes() for x in (one, other))
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and len(set(as_bytes)) == 1
    )
