"""Pruning in real trainings: statistics, averages, resume, KD, DDP, stock ESPnet."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import soundfile
import torch
from espnet2.train.reporter import Reporter

from espnet_kd.compress.pruning import Pruner, PruningConf, make_pruner
from espnet_kd.tasks.mixin import ConfigurationError
from espnet_kd.tasks.trainer import KDOptimizer, SparseReporter
from tests.ranks import run_two_ranks
from tests.states import same
from tests.tasks.recipe import RATE, SECONDS, Model, Recipe, load_stock, teachers

# Eight utterances are four updates in an epoch of this batch size.
OPTIONS = dict(batch_size=2, optim="adam", optim_conf=dict(lr=0.005))
TASKS = ["hybrid", "asr_transducer"]


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth", **Recipe.all_types())


def pruned_names(state: dict) -> list[str]:
    """By hand: matrices of layers, without embeddings and non-layers."""
    return [
        name
        for name, value in state.items()
        if value.dim() > 1
        and name.split(".")[-1].startswith("weight")
        and name not in ("decoder.embed.0.weight", "decoder.embed.weight")
    ]


def assert_sparse(state: dict, sparsity: float) -> None:
    """Every layer to the exact count; nothing else has new zeros."""
    names = pruned_names(state)
    assert len(names) >= 10
    for name in names:
        expected = math.floor(sparsity * state[name].numel() + 0.5)
        assert int((state[name] == 0).sum()) == expected, name


# --------------------------------------------------------------- models of both tasks


@pytest.mark.parametrize("kind", ["hybrid", "ctc", "transducer", "asr_transducer"])
def test_the_weights_of_a_model(recipe: Recipe, kind: str):
    """And none of the biases, norms, embeddings and projections of hidden-layer KD."""
    wide = recipe.teacher("hybrid", "wider", encoder_conf=dict(output_size=16))
    options = {}
    if kind != "asr_transducer":
        pair = dict(student="encoder.encoders.0", teacher="encoder.encoders.0")
        options = dict(kd_conf=dict(hidden=[pair]), **teachers(wide))
    model = recipe.build(kind, **options)
    if options:
        assert "kd_projections.0.weight" in dict(model.named_parameters())
    stock = recipe.build(kind, stock=True)
    expected = pruned_names(stock.state_dict())
    pruner = make_pruner(model, PruningConf(sparsity=0.5, end=1))
    assert sorted(pruner.weights) == sorted(expected)
    first = {
        "asr_transducer": [
            "decoder.rnn.0.weight_hh_l0",
            "joint_network.lin_out.weight",
        ],
        "transducer": ["decoder.decoder.0.weight_ih_l0", "encoder.embed.conv.0.weight"],
        "hybrid": ["decoder.output_layer.weight", "ctc.ctc_lo.weight"],
        "ctc": ["encoder.encoders.0.self_attn.linear_q.weight", "ctc.ctc_lo.weight"],
    }
    assert set(first[kind]) <= set(pruner.weights)
    conf = PruningConf(sparsity=0.5, end=1, others=("*",))
    everything = make_pruner(model, conf).weights
    assert sorted(everything) == sorted(n for n, _ in stock.named_parameters())


# ------------------------------------------------- statistics, averages and patience

# Dense for four epochs, pruned in the fifth and sixth, with the same weights after it.
SCHEDULE = dict(sparsity=0.95, start=16, end=22, every=2)
SPARSITIES = {
    17: 0.0,
    18: 0.95 * (1 - (4 / 6) ** 3),
    20: 0.95 * (1 - (2 / 6) ** 3),
    22: 0.95,
}


def reached(sparsity: float, sizes: list[int]) -> float:
    return sum(math.floor(sparsity * size + 0.5) for size in sizes) / sum(sizes)


def test_statistics_averages_and_patience(recipe: Recipe, caplog):
    """Earlier epochs, which are dense, are better, and none of them is kept."""
    options = dict(
        OPTIONS,
        optim_conf=dict(lr=0.02),
        scheduler="steplr",
        scheduler_conf=dict(step_size=6, gamma=0.02),
        max_epoch=9,
        patience=1,
        keep_nbest_models=[1, 3],
        best_model_criterion=[["valid", "loss", "min"], ["train", "loss", "min"]],
        log_interval=4,
        kd_conf=dict(pruning=SCHEDULE),
    )
    with caplog.at_level(logging.INFO):
        exp = recipe.train("hybrid", "sparse", **options)
    state = checkpoint(exp)
    stats = state["reporter"]["stats"]
    assert sorted(stats) == list(range(1, 10))  # patience did not count dense epochs
    losses = {epoch: each["valid"]["loss"] for epoch, each in stats.items()}
    assert max(losses[e] for e in (2, 3, 4)) < min(losses[e] for e in (6, 7, 8, 9))
    sizes = [state["model"][name].numel() for name in pruned_names(state["model"])]
    by_update = [0.0] * 40  # of the model that the update after so many began with
    for first, sparsity in SPARSITIES.items():
        by_update[first:] = [reached(sparsity, sizes)] * (40 - first)
    left = [1.0] * 17 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6] + [0.0] * 18
    for epoch, each in stats.items():
        train = slice(4 * epoch - 4, 4 * epoch)
        for name, values in (("sparsity", by_update), ("pruning_left", left)):
            mean = sum(values[train]) / 4
            assert each["train"][name] == pytest.approx(mean, abs=1e-6), epoch
            valid = pytest.approx(values[4 * epoch], abs=1e-6)
            assert each["valid"][name] == valid, epoch
    assert f"sparsity={by_update[-1]:.3f}" in caplog.text
    assert "training ended after" not in caplog.text
    assert_sparse(state["model"], 0.95)
    kept = {int(p.name[:-9]) for p in exp.glob("*epoch.pth")}
    assert kept <= {6, 7, 8, 9} and len(kept) >= 3
    zeros = {name: value == 0 for name, value in state["model"].items()}
    for path in (
        *exp.glob("*epoch.pth"),
        exp / "valid.loss.ave.pth",
        exp / "valid.loss.ave_1best.pth",
        exp / "valid.loss.ave_3best.pth",
        exp / "valid.loss.best.pth",
        exp / "train.loss.ave_3best.pth",
        exp / "latest.pth",
    ):
        model = torch.load(path)
        assert_sparse(model, 0.95)
        for name in pruned_names(model):
            assert torch.equal(model[name] == 0, zeros[name]), (path.name, name)
    ranked = sorted([6, 7, 8, 9], key=lambda epoch: losses[epoch])
    each = [torch.load(exp / f"{epoch}epoch.pth") for epoch in ranked[:3]]
    average = torch.load(exp / "valid.loss.ave_3best.pth")
    for name, value in average.items():
        if value.is_floating_point():
            mean = sum(model[name] for model in each) / 3
            torch.testing.assert_close(value, mean)
    assert os.readlink(exp / "valid.loss.ave_1best.pth") == f"{ranked[0]}epoch.pth"


def reporter_of(epochs: list[dict]) -> SparseReporter:
    reporter = SparseReporter()
    reporter.set_epoch(len(epochs))
    reporter.stats = {n: {"valid": dict(each)} for n, each in enumerate(epochs, 1)}
    return reporter


def test_which_epochs_are_ranked():
    loss = [5.0, 4.0, 3.0, 2.0, 6.0, 7.0, 6.5]
    left = [1.0, 1.0, 0.6, 0.2, 0.0, 0.0, 0.0]
    epochs = [dict(loss=a, pruning_left=b) for a, b in zip(loss, left)]
    expected = {1: [1], 2: [2, 1], 3: [3], 4: [4], 5: [5], 6: [5, 6], 7: [5, 7, 6]}
    for count, order in expected.items():
        reporter = reporter_of(epochs[:count])
        assert reporter.sort_epochs("valid", "loss", "min") == order
        assert reporter.sort_epochs("valid", "loss", "max") == order[::-1]
        assert reporter.get_best_epoch("valid", "loss", "min") == order[0]
        early = reporter.check_early_stopping(1, "valid", "loss", "min")
        assert early == (count == 7)


def test_without_pruning_epochs_are_ranked_as_before():
    epochs = [dict(loss=value) for value in (3.0, 1.0, 2.0)]
    reporter, stock = reporter_of(epochs), Reporter()
    stock.set_epoch(3)
    stock.stats = reporter.stats
    for mode in ("min", "max"):
        expected = stock.sort_epochs_and_values("valid", "loss", mode)
        assert reporter.sort_epochs_and_values("valid", "loss", mode) == expected


def test_epochs_of_a_dense_training_that_goes_on_with_pruning():
    """They record nothing of pruning, and are dense."""
    epochs = [dict(loss=1.0), dict(loss=2.0)]
    epochs += [dict(loss=3.0, pruning_left=0.5), dict(loss=4.0, pruning_left=0.0)]
    assert reporter_of(epochs[:3]).sort_epochs("valid", "loss", "min") == [3]
    assert reporter_of(epochs).sort_epochs("valid", "loss", "min") == [4]


# -------------------------------------------------------------------------- resume

# Two updates in an epoch; masks after 1, 3, 5, 7 and 8 updates.
RESUMED = dict(
    OPTIONS,
    accum_grad=2,
    optim_conf=dict(lr=0.02, weight_decay=0.01),
    scheduler="warmuplr",
    scheduler_conf=dict(warmup_steps=2),
    max_epoch=6,
    keep_nbest_models=2,
    kd_conf=dict(pruning=dict(sparsity=0.7, start=1, end=8, every=2)),
)
DROPOUT = {
    "hybrid": dict(encoder_conf=dict(dropout_rate=0.1)),
    "asr_transducer": dict(decoder_conf=dict(dropout_rate=0.1)),
}


def train_until_killed(recipe: Recipe, kind: str, output: str, at: int, options: dict):
    """In a process that is killed after a number of updates, in mid-epoch."""
    step = KDOptimizer.step

    def watched(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        if self.student.updates == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    watched.hooked = True
    KDOptimizer.step = watched
    recipe.train(kind, output, **options)


@pytest.mark.parametrize("kind", TASKS)
def test_resume_in_the_schedule_and_after_it(recipe: Recipe, kind: str):
    """After two kills equal to a training that was never stopped, to the bit."""
    options = {**RESUMED, **DROPOUT[kind]}
    whole = recipe.train(kind, f"pruned_whole_{kind}", **options)
    output = f"pruned_killed_{kind}"
    context = multiprocessing.get_context("fork")
    remembered = None
    for at, done in ((5, 4), (11, 10)):
        arguments = (recipe, kind, output, at, dict(options, resume=True))
        process = context.Process(target=train_until_killed, args=arguments)
        process.start()
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
        kept = checkpoint(recipe.folder / output)["optimizers"][0]["kd"]
        assert kept["updates"] == done
        remembered = remembered or kept["pruning"]["remembered"]
    assert sum(float(v.abs().sum()) for v in remembered.values()) > 0
    killed = recipe.train(kind, output, resume=True, **options)
    states = [checkpoint(folder) for folder in (whole, killed)]
    assert_sparse(states[0]["model"], 0.7)
    for part in ("model", "optimizers", "schedulers"):
        same(states[0][part], states[1][part], part)
    kd = states[1]["optimizers"][0]["kd"]
    assert kd["updates"] == 12 and kd["pruning"]["remembered"] == {}
    masks = kd["pruning"]["pruned"]
    for name in pruned_names(states[1]["model"]):
        assert torch.equal(masks[name], states[1]["model"][name] == 0), name
    for epoch in range(1, 7):
        stats = [state["reporter"]["stats"][epoch] for state in states]
        for part in ("train", "valid"):
            for name in ("loss", "sparsity", "pruning_left"):
                assert stats[0][part][name] == stats[1][part][name], (epoch, name)
    name = "valid.loss.ave_2best.pth"
    same(torch.load(whole / name), torch.load(killed / name))


# ---------------------------------------------------------------- nothing is pruned


@pytest.mark.parametrize("kind", TASKS)
def test_a_sparsity_of_zero_is_stock_training(recipe: Recipe, kind: str):
    options = dict(OPTIONS, max_epoch=2, **DROPOUT[kind])
    pruning = dict(sparsity=0.0, start=1, end=5, every=2)
    ours = recipe.train(kind, f"zero_{kind}", kd_conf=dict(pruning=pruning), **options)
    stock = recipe.train(kind, f"zero_stock_{kind}", stock=True, **options)
    states = [checkpoint(folder) for folder in (ours, stock)]
    same(states[0]["model"], states[1]["model"])
    optimizers = [state["optimizers"][0] for state in states]
    optimizers[0].pop("kd")
    same(*optimizers)
    for epoch in (1, 2):
        for part in ("train", "valid"):
            stats = [dict(state["reporter"]["stats"][epoch][part]) for state in states]
            for name in ("sparsity", "pruning_left"):
                stats[0].pop(name)
            assert stats[0].keys() == stats[1].keys()
            assert stats[0]["loss"] == stats[1]["loss"]


def test_gradient_noise_does_not_reach_pruned_weights(recipe: Recipe):
    """ESPnet adds it to the gradients after the backward pass."""
    pruning = dict(sparsity=0.7, start=1, end=2, every=1)
    options = dict(OPTIONS, grad_noise=True, kd_conf=dict(pruning=pruning))
    state = checkpoint(recipe.train("ctc", "noise", **options))
    model, optimizer = state["model"], state["optimizers"][0]
    assert_sparse(model, 0.7)
    names = [name for name, _ in recipe.build("ctc", stock=True).named_parameters()]
    for name in pruned_names(model):
        moments = optimizer["state"][names.index(name)]
        for moment in (moments["exp_avg"], moments["exp_avg_sq"]):
            assert (moment[model[name] == 0] == 0).all(), name


# ------------------------------------------------------------- with and without KD


def assert_decoded(kind: str, exp: Path, recipe: Recipe) -> None:
    """By stock ESPnet, which loads each tensor by its name."""
    path = exp / "valid.loss.ave.pth"
    model = Model(str(exp / "config.yaml"), str(path))
    state = load_stock(model).state_dict()
    same(dict(state), dict(torch.load(path)))
    if kind == "asr_transducer":
        from espnet2.bin.asr_transducer_inference import Speech2Text
    else:
        from espnet2.bin.asr_inference import Speech2Text
    names = ("asr_train_config", "asr_model_file")
    decode = Speech2Text(**dict(zip(names, model)), beam_size=2)
    assert decode(soundfile.read(recipe.data / "wav" / "utt3.wav")[0])


COLLAPSED = [dict(nodes="lattice", classes="collapsed", weight=0.1)]


@pytest.mark.parametrize("kind", ["transducer", "asr_transducer"])
@pytest.mark.parametrize("kd", [True, False])
def test_the_dense_model_is_teacher_and_initialisation(recipe: Recipe, kind, kd):
    teacher = recipe.teacher(kind)
    conf = dict(pruning=dict(sparsity=0.6, start=1, end=5, every=2))
    options = teachers(teacher) if kd else {}
    if kd:
        conf["losses"] = COLLAPSED
    exp = recipe.train(
        kind,
        f"from_teacher_{kind}_{kd}",
        max_epoch=2,
        init_param=[teacher.checkpoint],
        kd_conf=conf,
        **OPTIONS,
        **options,
    )
    state = checkpoint(exp)
    assert_sparse(state["model"], 0.6)
    assert state["optimizers"][0]["kd"]["updates"] == 8
    start = torch.load(teacher.checkpoint)
    assert state["model"].keys() == start.keys()
    sizes = [start[name].numel() for name in pruned_names(start)]
    big = {name: start[name].abs().flatten().argmax() for name in pruned_names(start)}
    close = [
        torch.isclose(state["model"][n].flatten()[k], start[n].flatten()[k], atol=0.1)
        for n, k in big.items()
    ]
    assert sum(map(bool, close)) > 0.8 * len(close)  # it began as the teacher
    for epoch in (1, 2):
        stats = state["reporter"]["stats"][epoch]
        assert ("loss_kd_lattice" in stats["train"]) == kd
    assert stats["valid"]["sparsity"] == pytest.approx(reached(0.6, sizes))
    if kd:
        losses = [state["reporter"]["stats"][n]["valid"] for n in (1, 2)]
        assert losses[1]["loss_kd_lattice"] > 0  # the teacher is dense
    assert_decoded(kind, exp, recipe)


def test_the_teacher_stays_dense(recipe: Recipe):
    teacher = recipe.teacher("hybrid")
    pruning = dict(sparsity=0.9, start=1, end=1)
    conf = dict(losses=[dict(nodes="tokens")], pruning=pruning)
    model = recipe.build("hybrid", kd_conf=conf, **teachers(teacher))
    model.load_state_dict(torch.load(teacher.checkpoint))
    make_pruner(model, PruningConf(**pruning)).after_update(
        1, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    assert_sparse(model.state_dict(), 0.9)
    _, stats, _ = model.train()(**recipe.batch())
    assert float(stats["loss_kd_tokens"]) > 0.01


# ------------------------------------------------------------- warnings and refusals


def test_a_training_that_ends_too_early(recipe: Recipe, caplog):
    pruning = dict(sparsity=0.8, start=0, end=8, every=2)
    exp = recipe.train("ctc", "early", kd_conf=dict(pruning=pruning), **OPTIONS)
    model = checkpoint(exp)["model"]
    sizes = [model[name].numel() for name in pruned_names(model)]
    now = 100 * reached(0.8 * (1 - 0.5**3), sizes)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    message = (
        "kd_conf.pruning.end: training ended after 4 updates, before update 8: the "
        f"student is {now:.1f}% sparse, not 80.0%. In a new folder, raise "
        "max_epoch or lower end"
    )
    assert message in warnings


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sharded_ddp=True), "sharded_ddp: pruning needs every weight"),
        (dict(ngpu=2), "ngpu: 2 without multiprocessing_distributed is DataParallel"),
        (dict(kd_conf=dict(pruning=dict(sparsity=2, end=1))), "kd_conf.pruning: spars"),
        (dict(kd_conf=dict(pruning=dict(sparsity=0.5))), "kd_conf.pruning: .*end"),
        (
            dict(kd_conf=dict(pruning=dict(sparsity=0.5, end=9, stat=1))),
            "kd_conf.pruning.stat: no such field; known: .*'start'",
        ),
    ],
)
def test_refusals(recipe: Recipe, changes: dict, message: str):
    changes = {"kd_conf": dict(pruning=dict(sparsity=0.5, end=1)), **changes}
    with pytest.raises(ConfigurationError, match=message):
        recipe.build("ctc", **changes)


def test_the_command_line_changes_a_field(recipe: Recipe):
    pruning = dict(sparsity=0.9, start=1, end=1)
    options = recipe.options("ctc", "line", kd_conf=dict(pruning=pruning), **OPTIONS)
    recipe.task("ctc").main(cmd=[*options, "--kd_conf", "pruning.sparsity=0.6"])
    assert_sparse(checkpoint(recipe.folder / "line")["model"], 0.6)


def test_a_pattern_of_names_that_matches_nothing(recipe: Recipe):
    pruning = dict(sparsity=0.5, end=1, parameters=["encodr.*"])
    message = "kd_conf.pruning.parameters: 'encodr..' matches none .*encoder.encoders.0"
    with pytest.raises(ConfigurationError, match=message):
        recipe.train("ctc", "misnamed", kd_conf=dict(pruning=pruning), **OPTIONS)


def test_frozen_parameters_are_not_pruned(recipe: Recipe):
    conf = dict(pruning=dict(sparsity=0.5, start=1, end=1))
    options = dict(OPTIONS, freeze_param=["encoder.embed"], kd_conf=conf)
    state = checkpoint(recipe.train("ctc", "frozen", **options))
    names = pruned_names(state["model"])
    frozen = [name for name in names if name.startswith("encoder.embed")]
    assert len(frozen) == 3
    for name in names:
        zeros = int((state["model"][name] == 0).sum())
        half = math.floor(0.5 * state["model"][name].numel() + 0.5)
        assert zeros == (0 if name in frozen else half), name


# ------------------------------------------------------------------------------ DDP


def watch_choices(seen: list) -> None:
    """Keep the masks and weights after each choice of masks."""
    choose = Pruner.choose

    def watched(self, updates: int) -> None:
        choose(self, updates)
        masks = {name: mask.clone() for name, mask in self.pruned.items()}
        weights = {n: w.detach().clone() for n, w in self.weights.items()}
        seen.append((updates, masks, weights))

    Pruner.choose = watched


def run_rank(rank: int, recipe: Recipe, command: list[str]) -> None:
    seen: list = []
    watch_choices(seen)
    recipe.task("hybrid").main(cmd=command)
    torch.save(seen, recipe.folder / f"rank{rank}.pth")


def test_two_processes_prune_as_one(tmp_path: Path, monkeypatch):
    """Each has half of every batch; masks after 1, 3 and 4 updates."""
    recipe = Recipe(tmp_path)
    shortest = int(RATE * min(SECONDS))
    for path in (recipe.data / "wav").iterdir():  # no padding
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[:shortest], rate)
    options = dict(
        optim="sgd",
        optim_conf=dict(lr=0.05, momentum=0.9),
        max_epoch=3,
        kd_conf=dict(pruning=dict(sparsity=0.8, start=1, end=4, every=2)),
    )
    seen: list = []
    monkeypatch.setattr(Pruner, "choose", Pruner.choose)
    watch_choices(seen)
    one = checkpoint(recipe.train("hybrid", "one", **options))
    command = recipe.options("hybrid", "two", **options)
    command += ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    monkeypatch.undo()
    run_two_ranks(run_rank, recipe, command)
    seen_by = [torch.load(recipe.folder / f"rank{rank}.pth") for rank in range(2)]
    assert [updates for updates, _, _ in seen] == [1, 3, 4]
    same(seen_by[0], seen_by[1])
    for alone, together in zip(seen, seen_by[0]):
        assert alone[0] == together[0]
        same(alone[1], together[1], f"masks after {alone[0]}")
        for name, value in alone[2].items():
            torch.testing.assert_close(together[2][name], value, rtol=1e-4, atol=1e-6)
    two = checkpoint(recipe.folder / "two")
    assert_sparse(two["model"], 0.8)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-6)
    for epoch in (1, 2, 3):
        for part in ("train", "valid"):
            stats = [each["reporter"]["stats"][epoch][part] for each in (one, two)]
            for name in ("loss", "sparsity", "pruning_left"):
                expected = pytest.approx(stats[0][name], rel=1e-4)
                assert stats[1][name] == expected, (epoch, name)
