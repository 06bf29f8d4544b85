"""Without KD losses our tasks train as stock ESPnet does, to the bit."""

import functools

import pytest
import torch

from espnet_kd.lattice import has_k2
from espnet_kd.models.joint import LeanJointNetwork
from tests.tasks.recipe import Recipe, teachers

needs_k2 = pytest.mark.skipif(not has_k2(), reason="the pruned loss needs k2")
KINDS = ["hybrid", "ctc", "attention", "transducer", "asr_transducer"]
PRUNED = pytest.param("pruned", marks=needs_k2)
KINDS.append(PRUNED)
NODES = dict(hybrid="tokens", ctc="frames", attention="tokens")  # path elsewhere
# Dropout: the same random numbers are drawn, too.
DROPOUT = {
    "asr": dict(encoder_conf=dict(dropout_rate=0.2, positional_dropout_rate=0.1)),
    "asr_transducer": dict(decoder_conf=dict(dropout_rate=0.2)),
}


def dropout(kind: str) -> dict:
    return DROPOUT["asr_transducer" if kind in ("asr_transducer", "pruned") else "asr"]


def step(model: torch.nn.Module, batch: dict) -> tuple[dict, dict]:
    """Losses and gradients of one training step."""
    torch.manual_seed(1)
    loss, stats, _ = model.train()(**batch)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: v for n, v in stats.items() if v is not None}, gradients


def assert_same_step(ours: torch.nn.Module, stock: torch.nn.Module, batch) -> None:
    (our_stats, our_gradients), (stats, gradients) = step(ours, batch), step(
        stock, batch
    )
    assert our_stats.keys() == stats.keys() and our_gradients.keys() == gradients.keys()
    for name, value in stats.items():
        assert torch.equal(
            torch.as_tensor(our_stats[name]), torch.as_tensor(value)
        ), name
    for name, gradient in gradients.items():
        assert torch.equal(our_gradients[name], gradient), name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients(recipe: Recipe, kind: str):
    """On a padded batch: without KD nothing is corrected."""
    batch = recipe.batch()
    assert batch["speech_lengths"].min() < batch["speech_lengths"].max()
    ours = recipe.build(kind, **dropout(kind))
    stock = recipe.build(kind, stock=True, **dropout(kind))
    assert type(ours) is type(stock)
    assert_same_step(ours, stock, batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "true_lengths, kd",
    [(None, None), (True, None), (False, None)]
    + [(value, kd) for kd in ("losses", "weights") for value in (None, True, False)],
)
def test_which_models_have_true_lengths(recipe: Recipe, kind, true_lengths, kd):
    """As set, else as with KD; seen from an utterance in a batch and alone."""
    conf = {} if true_lengths is None else dict(true_lengths=true_lengths)
    options = {}
    if kd == "losses":
        conf["losses"] = [dict(nodes=NODES.get(kind, "path"))]
        teacher = "asr_transducer" if kind == "pruned" else kind
        options = teachers(recipe.teacher(teacher))
    model = recipe.build(kind, kd_conf=conf, weights=kd == "weights", **options)
    stock = recipe.build(kind, stock=True)
    batch, short = recipe.batch([4, 3]), recipe.batch([3])
    with torch.no_grad():
        ours, theirs, alone = (
            each.encode(b["speech"], b["speech_lengths"])
            for each, b in ((model, batch), (stock, batch), (stock, short))
        )
    frames = int(alone[1])
    is_true = ours[1][-1] == frames and torch.allclose(
        ours[0][-1, :frames], alone[0][0], atol=1e-5
    )
    expected = kd is not None if true_lengths is None else true_lengths
    assert is_true == expected
    assert (torch.equal(ours[1], theirs[1]) and torch.equal(ours[0], theirs[0])) == (
        not expected
    )


@pytest.mark.parametrize("kind", KINDS)
def test_true_lengths_change_nothing_where_there_is_no_padding(
    recipe: Recipe, kind: str
):
    batch = recipe.batch([1, 4])
    shorter = int(batch["speech_lengths"].min())
    batch["speech"] = batch["speech"][:, :shorter]
    batch["speech_lengths"][:] = shorter
    ours = recipe.build(kind, kd_conf=dict(true_lengths=True), **dropout(kind))
    stock = recipe.build(kind, stock=True, **dropout(kind))
    assert_same_step(ours, stock, batch)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stock_loss_beside_a_kd_loss(recipe: Recipe, kind: str, lean: bool):
    """A KD loss of weight 0 leaves the student's own loss and gradients alone.

    To the bit, but for rounding where the joint network is computed in chunks.
    """
    teacher = recipe.teacher("asr_transducer" if kind == "pruned" else kind)
    losses = [dict(nodes=NODES.get(kind, "path"), weight=0.0)]
    conf = dict(losses=losses, true_lengths=False, lean_joint=lean)
    ours = recipe.build(kind, kd_conf=conf, **teachers(teacher), **dropout(kind))
    stock = recipe.build(kind, stock=True, **dropout(kind))
    (our_stats, our_gradients), (stats, gradients) = (
        step(model, recipe.batch()) for model in (ours, stock)
    )
    is_equal = torch.equal
    if lean and kind in ("transducer", "asr_transducer", "pruned"):
        is_equal = functools.partial(torch.allclose, rtol=1e-3, atol=1e-4)
    assert is_equal(our_stats["loss_hard"], stats["loss"])
    for name, gradient in gradients.items():
        assert is_equal(our_gradients[name], gradient), name


@pytest.mark.parametrize("kind", ["transducer", "asr_transducer", PRUNED])
def test_a_lean_joint_network_without_kd(recipe: Recipe, kind: str):
    """The stock step, but for rounding, without a tensor of all logits."""
    conf = dict(lean_joint=True, true_lengths=False)
    ours = recipe.build(kind, kd_conf=conf, **dropout(kind))
    stock = recipe.build(kind, stock=True, **dropout(kind))
    assert isinstance(ours.joint_network, LeanJointNetwork)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    (our_stats, our_gradients), (stats, gradients) = (
        step(model, recipe.batch()) for model in (ours, stock)
    )
    torch.testing.assert_close(our_stats["loss"], stats["loss"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            our_gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_training(recipe: Recipe, kind: str):
    options = dict(max_epoch=2, optim="adam", optim_conf=dict(lr=0.01))
    options.update(dropout(kind))
    folders = [
        recipe.train(kind, f"off_{kind}", **options),
        recipe.train(kind, f"stock_{kind}", stock=True, **options),
    ]
    ours, stock = (torch.load(folder / "2epoch.pth") for folder in folders)
    start = recipe.build(kind, stock=True, **options).state_dict()
    assert ours.keys() == stock.keys()
    assert any(not torch.equal(start[name], stock[name]) for name in stock)
    for name in stock:
        assert torch.equal(ours[name], stock[name]), name
