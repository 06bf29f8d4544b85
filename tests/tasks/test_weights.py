"""`kd_weight`: every loss as the weighted mean of the losses of single utterances."""

import pytest
import torch

from espnet_kd.lattice import has_k2
from tests.tasks.recipe import Recipe, teachers, train_mode

needs_k2 = pytest.mark.skipif(not has_k2(), reason="the pruned loss needs k2")
PARTS = {
    "hybrid": ("loss_att", "loss_ctc", "loss"),
    "transducer": ("loss_transducer", "loss_ctc", "loss"),
    "asr_transducer": ("loss_transducer", "loss_aux_ctc", "loss"),
    "pruned": ("loss_transducer", "loss_aux_ctc", "loss"),
}
KINDS = [
    pytest.param(kind, marks=needs_k2 if kind == "pruned" else ()) for kind in PARTS
]
# A model without weights is stock ESPnet's unless its lengths are corrected, too.
CORRECTED = dict(kd_conf=dict(true_lengths=True))
FULL_LENGTH = dict(model_conf=dict(length_normalized_loss=True))


def step(model: torch.nn.Module, batch: dict) -> tuple[dict, dict]:
    if hasattr(model, "steps_num"):
        model.steps_num = 7  # the warm-up of the pruned loss counts forward passes
    model.zero_grad()
    loss, stats, _ = train_mode(model)(**batch)
    loss.backward()
    gradients = {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }
    return stats, gradients


def alone(recipe: Recipe, stock: torch.nn.Module) -> list[tuple[dict, dict]]:
    """Statistics and gradients of each of four utterances in a batch of its own."""
    return [step(stock, recipe.batch([n])) for n in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_mean_of_utterances(recipe: Recipe, kind: str):
    batch = recipe.batch(weights=True)
    stats, gradients = step(recipe.build(kind, weights=True), batch)
    singles = alone(recipe, recipe.build(kind, stock=True))
    weights = batch["kd_weight"].flatten().tolist()
    for name in PARTS[kind]:
        expected = sum(w * float(s[name]) for w, (s, _) in zip(weights, singles)) / 4
        assert float(stats[name]) == pytest.approx(expected, rel=1e-4), name
    for name, gradient in gradients.items():
        expected = sum(w * g[name] for w, (_, g) in zip(weights, singles)) / 4
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_loss_normalised_by_tokens(recipe: Recipe):
    """ESPnet then divides by the tokens of the batch, so utterances count by theirs."""
    batch = recipe.batch(weights=True)
    stats, _ = step(recipe.build("hybrid", weights=True, **FULL_LENGTH), batch)
    singles = alone(recipe, recipe.build("hybrid", stock=True, **FULL_LENGTH))
    tokens = (batch["text_lengths"] + 1).tolist()  # and <eos>
    weighted = [
        w * n * float(s["loss_att"])
        for w, n, (s, _) in zip(batch["kd_weight"].flatten().tolist(), tokens, singles)
    ]
    expected = sum(weighted) / sum(tokens)
    assert float(stats["loss_att"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_change_nothing(recipe: Recipe, kind: str):
    batch = recipe.batch(weights=True)
    batch["kd_weight"].fill_(1.0)
    for changes in ({}, FULL_LENGTH if kind == "hybrid" else {}):
        stats, gradients = step(recipe.build(kind, weights=True, **changes), batch)
        plain, plain_gradients = step(
            recipe.build(kind, **CORRECTED, **changes), recipe.batch()
        )
        for name in PARTS[kind]:
            assert float(stats[name]) == pytest.approx(float(plain[name]), rel=1e-5)
        for name, gradient in gradients.items():
            expected = plain_gradients[name]
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_a_label_smoothing_of_zero(recipe: Recipe):
    changes = dict(model_conf=dict(lsm_weight=0.0))
    batch = recipe.batch(weights=True)
    stats, _ = step(recipe.build("hybrid", weights=True, **changes), batch)
    singles = alone(recipe, recipe.build("hybrid", stock=True, **changes))
    weights = batch["kd_weight"].flatten().tolist()
    expected = sum(w * float(s["loss_att"]) for w, (s, _) in zip(weights, singles)) / 4
    assert float(stats["loss_att"]) == pytest.approx(expected, rel=1e-4)


@needs_k2
def test_a_pruned_loss_that_is_summed(recipe: Recipe):
    changes = dict(model_conf=dict(k2_pruned_loss_args=dict(reduction="sum")))
    batch = recipe.batch(weights=True)
    batch["kd_weight"].fill_(1.0)
    stats, _ = step(recipe.build("pruned", weights=True, **changes), batch)
    plain, _ = step(recipe.build("pruned", **CORRECTED, **changes), recipe.batch())
    expected = float(plain["loss_transducer"])
    assert float(stats["loss_transducer"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_training_reads_weights_from_the_data(recipe: Recipe, kind: str):
    """Weights of 0 leave the student unchanged, others do not."""
    (recipe.data / "kd_weight").rename(recipe.data / "kept")
    try:
        zeros = "".join(f"utt{n} 0\n" for n in range(8))
        (recipe.data / "kd_weight").write_text(zeros)
        folder = recipe.train(kind, f"zero_{kind}", weights=True)
    finally:
        (recipe.data / "kept").replace(recipe.data / "kd_weight")
    start = dict(recipe.build(kind, seed=3, stock=True).named_parameters())
    weighted = recipe.train(kind, f"weighted_{kind}", weights=True)
    still, moved = (torch.load(each / "1epoch.pth") for each in (folder, weighted))
    assert all(torch.equal(still[name], start[name]) for name in start)
    assert any(not torch.equal(moved[name], start[name]) for name in start)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (
            "asr_transducer",
            dict(model_conf=dict(auxiliary_lm_loss_weight=0.1)),
            "auxiliary_lm_loss_weight",
        ),
        ("ctc", dict(ctc_conf=dict(ctc_type="builtin2")), "ctc_type; use builtin"),
    ],
)
def test_a_loss_without_weights_is_refused(recipe: Recipe, kind, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe.build(kind, weights=True, **changes)
    teacher = recipe.teacher("asr_transducer" if kind == "asr_transducer" else "hybrid")
    conf = dict(losses=[dict(nodes="frames")])
    recipe.build(kind, kd_conf=conf, **teachers(teacher), **changes)
