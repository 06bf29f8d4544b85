"""Gradual magnitude pruning: schedule, masks, optimisers, parameters, configuration."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from espnet_kd.compress.pruning import Pruner, PruningConf, make_pruner
from espnet_kd.config.kd_conf import KDConf, parse_kd_conf
from espnet_kd.tasks.trainer import follow
from tests.compress.test_sparsity import naive_masks
from tests.ranks import run_two_ranks
from tests.states import same

# ------------------------------------------------------------------------ schedule

# Update: sparsity, worked out by hand from the schedule of Zhu and Gupta 2017.
TABLES = {
    "from 0 to 0.9 in 100 updates": (
        dict(sparsity=0.9, end=100, every=5),
        {
            0: 0.0,
            5: 0.128362500,
            10: 0.2439,
            14: 0.2439,
            25: 0.5203125,
            50: 0.7875,
            75: 0.8859375,
            95: 0.899887500,
            99: 0.899887500,
            100: 0.9,
            101: 0.9,
            10**9: 0.9,
        },
    ),
    "from 0.2, begun late": (
        dict(sparsity=0.6, initial_sparsity=0.2, start=10, end=50, every=10),
        {
            0: 0.0,
            9: 0.0,
            10: 0.2,
            19: 0.2,
            20: 0.43125,
            29: 0.43125,
            30: 0.55,
            40: 0.59375,
            49: 0.59375,
            50: 0.6,
            51: 0.6,
        },
    ),
    "end between two choices": (
        dict(sparsity=0.7, start=3, end=10, every=3),
        {
            2: 0.0,
            3: 0.0,
            5: 0.0,
            6: 0.569387755102,
            8: 0.569387755102,
            9: 0.697959183673,
            10: 0.7,
            12: 0.7,
        },
    ),
    "fewer updates than `every`": (
        dict(sparsity=0.5, initial_sparsity=0.1, start=2, end=4, every=100),
        {1: 0.0, 2: 0.1, 3: 0.1, 4: 0.5, 5: 0.5},
    ),
    "at once": (dict(sparsity=0.8, start=7, end=7), {6: 0.0, 7: 0.8, 8: 0.8}),
    "constant": (
        dict(sparsity=0.6, initial_sparsity=0.6, start=1, end=9, every=4),
        {0: 0.0, 1: 0.6, 5: 0.6, 9: 0.6},
    ),
    "nothing": (dict(sparsity=0.0, end=4, every=1), {0: 0.0, 2: 0.0, 4: 0.0, 9: 0.0}),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_schedule(name: str):
    conf, table = TABLES[name]
    for updates, expected in table.items():
        sparsity = PruningConf(**conf).sparsity_at(updates)
        assert sparsity == pytest.approx(expected, abs=1e-12), updates


DUE = [
    (dict(end=10, start=3, every=3), [3, 6, 9, 10]),
    (dict(end=9, start=3, every=3), [3, 6, 9]),
    (dict(end=4, every=1), [0, 1, 2, 3, 4]),
    (dict(end=7, start=7, every=2), [7]),
    (dict(end=5, start=2, every=100), [2, 5]),
]


@pytest.mark.parametrize("conf, expected", DUE)
def test_when_masks_are_chosen(conf: dict, expected: list[int]):
    conf = PruningConf(sparsity=0.5, **conf)
    assert [n for n in range(30) if conf.is_due(n)] == expected


def test_what_is_left_of_the_schedule():
    conf = PruningConf(sparsity=0.5, start=2, end=10, every=4)
    left = [conf.left(n) for n in range(12)]
    assert left == [1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0]
    assert PruningConf(sparsity=0.5, start=3, end=3).left(2) == 1
    assert PruningConf(sparsity=0.5, start=3, end=3).left(3) == 0


# --------------------------------------------------------- training by a naive loop


class Net(nn.Module):
    """Layers of every kind that is pruned, and some that are not."""

    updates = 0
    pruner: Pruner | None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.depth = nn.Conv1d(16, 16, 3, groups=16, padding=1)
        self.norm = nn.LayerNorm(16)
        self.lstm = nn.LSTM(16, 8, batch_first=True)
        self.linear = nn.Linear(8, 17)
        self.out = nn.Linear(17, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, 6, 6)
        x = self.conv(x.unsqueeze(1)).flatten(2)  # (B, 4, 16)
        x = self.depth(x.transpose(1, 2).repeat(1, 1, 2)).transpose(1, 2)
        x, _ = self.lstm(self.norm(x))
        return self.out(torch.tanh(self.linear(x))).mean(1)


def data(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, 6, generator=generator)
    return x, torch.randint(0, 3, (size,), generator=generator)


def loss_of(model: nn.Module, seed: int, size: int = 8) -> Tensor:
    x, y = data(seed, size)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(x.to(dtype)), y)


def pruned_net(conf: dict, optimizer=torch.optim.SGD, dtype=torch.float32, **options):
    """A pruned model with its optimiser, joined as in tasks/mixin.py."""
    torch.manual_seed(1)
    model = Net().to(dtype)
    optimizer = optimizer(model.parameters(), **{"lr": 0.5, **options})
    model.pruner = make_pruner(model, PruningConf(**conf))
    follow(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, scale=1.0):
    optimizer.zero_grad()
    (loss_of(model, seed) * scale).backward()
    optimizer.step()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    names = ("weight", "weight_ih_l0", "weight_hh_l0")
    return {
        name: weight.detach()
        for name, weight in model.named_parameters()
        if name.split(".")[-1] in names and not name.startswith("norm")
    }


def naive_sparsity(updates: int, sparsity, end, start=0, every=100, initial_sparsity=0):
    """Equation 1 at an update, None where masks are kept."""
    if updates == end:
        return sparsity
    if not start <= updates < end or (updates - start) % every:
        return None
    fading = (1 - (updates - start) / (end - start)) ** 3
    return sparsity + (initial_sparsity - sparsity) * fading


def naive_training(conf: dict, steps: int, momentum=0.0, decay=0.0, lr=0.5):
    """Dense values and masks after each step of gradient descent with masked weights.

    As in the paper: the forward pass reads value * mask, and a masked value gets no
    gradient but stays, so that it can return.
    """
    conf = dict(conf)
    how = {name: conf.pop(name) for name in ("pattern", "ranking") if name in conf}
    torch.manual_seed(1)
    twin = Net().double()
    dense = {name: p.detach().clone() for name, p in twin.named_parameters()}
    kept = {name: torch.ones_like(value) for name, value in dense.items()}
    speed = {name: torch.zeros_like(value) for name, value in dense.items()}
    prunable = list(weights_of(twin))
    if how.get("pattern") == "2:4":
        prunable = [n for n in prunable if dense[n][0].numel() % 4 == 0]
    for updates in range(1, steps + 1):
        for name, parameter in twin.named_parameters():
            parameter.data = dense[name] * kept[name]
        twin.zero_grad()
        loss_of(twin, updates).backward()
        for name, parameter in twin.named_parameters():
            gradient = (parameter.grad + decay * dense[name]) * kept[name]
            speed[name] = momentum * speed[name] + gradient
            dense[name] = dense[name] - lr * speed[name] * kept[name]
        sparsity = naive_sparsity(updates, **conf)
        if sparsity is not None:
            values = {name: dense[name].numpy() for name in prunable}
            for name, mask in naive_masks(values, sparsity, **how).items():
                kept[name] = torch.tensor(~mask).double()
                speed[name] = speed[name] * kept[name]
        yield {name: value * kept[name] for name, value in dense.items()}, kept


CASES = {
    "unstructured": dict(sparsity=0.9, start=1, end=13, every=2),
    "global": dict(
        sparsity=0.6,
        initial_sparsity=0.55,
        start=1,
        end=13,
        every=2,
        ranking="global",
    ),
    "blocks": dict(sparsity=0.7, start=2, end=12, every=3, pattern="2x3"),
    "rows": dict(
        sparsity=0.6, initial_sparsity=0.5, start=1, end=14, every=1, pattern="1x16"
    ),
    "columns": dict(
        sparsity=0.5,
        initial_sparsity=0.5,
        start=1,
        end=14,
        every=1,
        pattern="16x1",
        ranking="global",
    ),
    "2:4": dict(sparsity=0.5, start=1, end=13, every=2, pattern="2:4"),
    "2:4 global": dict(
        sparsity=0.4, start=1, end=9, every=2, pattern="2:4", ranking="global"
    ),
    "initial": dict(sparsity=0.8, initial_sparsity=0.5, start=2, end=14, every=3),
    "at once": dict(sparsity=0.6, start=5, end=5),
}
GRADIENT_DESCENT = [{}, dict(momentum=0.9), dict(momentum=0.9, decay=0.1)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", GRADIENT_DESCENT)
def test_training_equals_a_naive_loop(name: str, rule: dict):
    """Masks, pruned weights and remaining weights, after every step."""
    conf, steps = CASES[name], 18
    options = dict(momentum=rule.get("momentum", 0), weight_decay=rule.get("decay", 0))
    model, optimizer = pruned_net(conf, dtype=torch.float64, **options)
    revived, last = 0, {}
    for updates, (expected, kept) in enumerate(naive_training(conf, steps, **rule), 1):
        step(model, optimizer, updates)
        assert model.updates == updates
        for parameter, value in model.named_parameters():
            assert torch.equal(value == 0, kept[parameter] == 0), (updates, parameter)
            torch.testing.assert_close(
                value.detach(), expected[parameter], rtol=1e-9, atol=1e-12
            )
            if parameter in last:
                revived += int((last[parameter] < kept[parameter]).sum())
            if updates > conf["end"]:
                assert torch.equal(last[parameter], kept[parameter])
        last = {parameter: each.clone() for parameter, each in kept.items()}
    zeros = sum(int((w == 0).sum()) for w in model.pruner.weights.values())
    count = sum(w.numel() for w in model.pruner.weights.values())
    assert zeros > 0.3 * count
    assert model.pruner.stats(updates)["sparsity"] == zeros / count
    assert model.pruner.stats(updates)["pruning_left"] == 0
    assert revived or name in ("at once", "columns")  # otherwise the test is too weak


@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_exact_sparsity_after_every_step(ranking: str):
    conf = dict(sparsity=0.9, start=3, end=20, every=4, ranking=ranking)
    model, optimizer = pruned_net(conf, torch.optim.Adam, lr=0.01)
    weights = weights_of(model)
    table = {n: 0.0 for n in range(1, 7)}  # choices at 3 (0 %), 7, 11, 15, 19, 20
    table.update({n: 0.9 * (1 - (13 / 17) ** 3) for n in range(7, 11)})
    table.update({n: 0.9 * (1 - (9 / 17) ** 3) for n in range(11, 15)})
    table.update({n: 0.9 * (1 - (5 / 17) ** 3) for n in range(15, 19)})
    table.update({19: 0.9 * (1 - (1 / 17) ** 3), **{n: 0.9 for n in range(20, 25)}})
    for updates, sparsity in table.items():
        step(model, optimizer, updates)
        zeros = {name: int((each == 0).sum()) for name, each in weights.items()}
        sizes = {name: each.numel() for name, each in weights.items()}
        if ranking == "layer":
            expected = {n: math.floor(sparsity * k + 0.5) for n, k in sizes.items()}
            assert zeros == expected, updates
            total = sum(expected.values())
        else:
            total = math.floor(sparsity * sum(sizes.values()) + 0.5)
            assert sum(zeros.values()) == total, updates
        stats = model.pruner.stats(model.updates)
        assert stats["sparsity"] == pytest.approx(total / sum(sizes.values()))
    if ranking == "global":  # layers become differently sparse
        assert len({round(zeros[n] / sizes[n], 3) for n in sizes}) > 3


@pytest.mark.parametrize("start", [0, 1])
def test_a_schedule_that_starts_with_training(start: int):
    conf = dict(sparsity=0.5, initial_sparsity=0.25, start=start, end=9, every=4)
    model, optimizer = pruned_net(conf)
    step(model, optimizer, 1)
    zeros = {n: int((w == 0).sum()) for n, w in weights_of(model).items()}
    expected = {
        n: math.floor(0.25 * w.numel() + 0.5) for n, w in weights_of(model).items()
    }
    assert zeros == expected


# ------------------------------------------------------------------------- revival


class Row(nn.Linear):
    """A row of weights, moved by setting them."""

    updates = 0
    pruner: Pruner | None = None

    def __init__(self, values: list[float]) -> None:
        super().__init__(len(values), 1, bias=False)
        self.weight.data = torch.tensor([values])

    @property
    def values(self) -> list[float]:
        return self.weight.detach()[0].tolist()


def row(values: list[float], **conf) -> tuple[Row, torch.optim.Optimizer]:
    model = Row(values)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.pruner = make_pruner(model, PruningConf(**conf))
    follow(model, optimizer)
    return model, optimizer


def move(model: Row, optimizer: torch.optim.Optimizer, by: list[float]) -> None:
    """One update that adds `by` to the weights."""
    optimizer.zero_grad()
    (model.weight * -torch.tensor([by])).sum().backward()
    optimizer.step()


def test_a_weight_returns_with_its_old_value():
    conf = dict(sparsity=0.5, initial_sparsity=0.5, start=1, end=5, every=2)
    model, optimizer = row([4.0, -2.0, 3.0, 1.0], **conf)
    move(model, optimizer, [0.0, 0.0, 0.0, 0.0])
    assert model.values == [4, 0, 3, 0]
    move(model, optimizer, [0.0, 5.0, -1.5, 5.0])  # pruned weights do not move
    assert model.values == [4, 0, 1.5, 0]
    move(model, optimizer, [0.0, 5.0, 0.0, 5.0])
    assert model.values == [4, -2, 0, 0]  # -2 is more than 1.5
    move(model, optimizer, [0.0, 0.5, 5.0, 5.0])
    assert model.values == [4, -1.5, 0, 0]
    move(model, optimizer, [0.0, 0.25, 5.0, 5.0])  # the last choice: 1.5 beats 1.25
    assert model.values == [4, 0, 1.5, 0]
    for _ in range(7):  # nothing returns after it
        move(model, optimizer, [-0.5, 9.0, -0.2, 9.0])
        assert model.values[1] == model.values[3] == 0
    assert model.values == pytest.approx([0.5, 0, 0.1, 0])


def test_a_value_remembered_twice_is_the_latest():
    conf = dict(sparsity=0.5, initial_sparsity=0.5, start=1, end=9, every=1)
    model, optimizer = row([2.0, 1.0], **conf)
    move(model, optimizer, [0.0, 0.0])
    assert model.values == [2, 0]
    move(model, optimizer, [-1.5, 0.0])
    assert model.values == [0, 1]  # remembers 0.5
    move(model, optimizer, [0.0, -0.75])
    assert model.values == [0.5, 0]  # remembers 0.25
    move(model, optimizer, [-0.375, 0.0])
    assert model.values == [0, 0.25]


def test_a_weight_that_is_zero_by_itself_may_move():
    conf = dict(sparsity=0.25, initial_sparsity=0.25, start=1, end=3, every=1)
    model, optimizer = row([0.0, 0.0, 5.0, 6.0], **conf)
    for by, expected in (
        ([0.0, 0.0, 0.0, 0.0], [0, 0, 5, 6]),
        ([3.0, 3.0, 0.0, 0.0], [0, 3, 5, 6]),
        ([3.0, -3.0, 0.0, 0.0], [0, 0, 5, 6]),
        ([3.0, 4.0, 0.0, 0.0], [0, 4, 5, 6]),
    ):
        move(model, optimizer, by)
        assert model.values == expected


def test_a_late_start_catches_up():
    """For example after resuming a training without pruning."""
    conf = dict(sparsity=0.5, start=2, end=8, every=100)
    model, optimizer = row([1.0, 2.0, 3.0, 4.0], **conf)
    model.updates = 20
    move(model, optimizer, [0.0] * 4)
    assert model.values == [0, 0, 3, 4]
    move(model, optimizer, [0.0, 0.0, -2.9, -3.9])
    assert model.values == pytest.approx([0, 0, 0.1, 0.1])


# ---------------------------------------------------------------------- optimisers

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, dict()),
    "decay": (torch.optim.SGD, dict(weight_decay=0.1)),
    "momentum": (torch.optim.SGD, dict(momentum=0.9, weight_decay=0.1)),
    "nesterov": (
        torch.optim.SGD,
        dict(momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "adam": (torch.optim.Adam, dict(weight_decay=0.1)),
    "amsgrad": (torch.optim.Adam, dict(amsgrad=True)),
    "adamw": (torch.optim.AdamW, dict(weight_decay=0.1, amsgrad=True)),
    "rmsprop": (
        torch.optim.RMSprop,
        dict(momentum=0.9, centered=True, weight_decay=0.1),
    ),
    "adadelta": (torch.optim.Adadelta, dict(weight_decay=0.1)),
    "adagrad": (torch.optim.Adagrad, dict(weight_decay=0.1)),
    "adamax": (torch.optim.Adamax, dict()),
    "radam": (torch.optim.RAdam, dict()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_what_is_pruned_stays_zero(name: str, ranking: str):
    """Through large gradients; its moments are zero, at every step."""
    kind, options = OPTIMIZERS[name]
    conf = dict(sparsity=0.8, start=2, end=8, every=3, ranking=ranking)
    model, optimizer = pruned_net(conf, kind, **{"lr": 0.05, **options})
    weights = weights_of(model)
    pruned = {}
    for updates in range(1, 14):
        before = {name: weight.clone() for name, weight in weights.items()}
        scale = 100.0 if updates in (3, 6, 10) else 1.0
        step(model, optimizer, updates, scale)
        if updates in (2, 5, 8):
            pruned = {name: weight == 0 for name, weight in weights.items()}
        for name, mask in pruned.items():
            assert (weights[name][mask] == 0).all(), (updates, name)
            assert not (weights[name][~mask] == 0).any(), (updates, name)
            moments = [
                value
                for value in optimizer.state[model.get_parameter(name)].values()
                if isinstance(value, Tensor) and value.shape == mask.shape
            ]
            plain = kind is torch.optim.SGD and "momentum" not in options
            assert bool(moments) != plain
            for value in moments:
                assert (value[mask] == 0).all(), (updates, name)
        moved = [not torch.equal(weights[name], before[name]) for name in weights]
        assert sum(moved) >= 3, updates
    zeros = sum(int((each == 0).sum()) for each in weights.values())
    assert zeros == pytest.approx(0.8 * sum(w.numel() for w in weights.values()), abs=4)


def test_a_pruned_weight_gets_no_gradient():
    model, optimizer = pruned_net(dict(sparsity=0.8, start=1, end=1))
    step(model, optimizer, 1)
    dense = copy.deepcopy({n: p.detach() for n, p in model.named_parameters()})
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    torch.manual_seed(1)
    twin = Net()
    twin.load_state_dict(dense)
    loss_of(twin, 2).backward()
    whole, expected = 0.0, 0.0
    prunable = weights_of(twin)
    for name, parameter in twin.named_parameters():
        gradient = parameter.grad.double()
        whole += float((gradient**2).sum())
        if name in prunable:
            gradient = gradient * (prunable[name] != 0)
        expected += float((gradient**2).sum())
        got = model.get_parameter(name).grad.double()
        torch.testing.assert_close(got, gradient)
    assert float(norm) == pytest.approx(math.sqrt(expected), rel=1e-5)
    assert math.sqrt(whole) > 1.2 * math.sqrt(expected)


def test_an_overflow_at_a_pruned_weight_is_ignored():
    conf = dict(sparsity=0.5, start=1, end=1)
    model, optimizer = row([1.0, 2.0], **conf)
    move(model, optimizer, [0.0, 0.0])
    for bad in (math.inf, math.nan):
        optimizer.zero_grad()
        (model.weight * torch.tensor([[bad, 1.0]])).sum().backward()
        assert model.weight.grad.tolist() == [[0.0, 1.0]]


def test_gradient_accumulation():
    """Several backward passes for each update are one pass over all their batches."""
    conf = dict(sparsity=0.8, start=2, end=9, every=2)
    whole, whole_optimizer = pruned_net(conf, dtype=torch.float64, momentum=0.9)
    model, optimizer = pruned_net(conf, dtype=torch.float64, momentum=0.9)
    for updates in range(1, 13):
        optimizer.zero_grad()
        whole_optimizer.zero_grad()
        parts = [data(10 * updates + n, 4) for n in range(3)]
        for x, y in parts:
            (nn.functional.cross_entropy(model(x.double()), y) / 3).backward()
        optimizer.step()
        x, y = (torch.cat(each) for each in zip(*parts))
        nn.functional.cross_entropy(whole(x.double()), y).backward()
        whole_optimizer.step()
        assert model.updates == whole.updates == updates
        for name, value in whole.named_parameters():
            other = model.get_parameter(name)
            assert torch.equal(other == 0, value == 0), (updates, name)
            torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------ mixed precision


def cpu_scaler(**options):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch scales gradients on CUDA alone")
    return torch.amp.GradScaler("cpu", **options)


def scaled_step(model, optimizer, scaler, seed: int, overflow: bool) -> float:
    """As in ESPnet's trainer; returns the gradient's norm."""
    optimizer.zero_grad()
    scaler.scale(loss_of(model, seed)).backward()
    if overflow:
        model.norm.weight.grad[0] = math.inf
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    scaler.step(optimizer)
    scaler.update()
    return float(norm)


@pytest.mark.parametrize(
    "kind, options",
    [
        (torch.optim.SGD, dict(lr=0.5)),
        (torch.optim.Adam, dict(lr=0.01)),
        (torch.optim.Adam, dict(lr=0.01, fused=True)),
    ],
    ids=["sgd", "adam", "fused adam"],
)
def test_a_step_that_a_scaler_skips_is_not_an_update(kind: type, options: dict):
    """A fused optimiser skips the step itself."""
    conf = dict(sparsity=0.8, start=1, end=5, every=2)
    scaler = cpu_scaler(init_scale=2.0**10)
    model, optimizer = pruned_net(conf, kind, **options)
    plain, plain_optimizer = pruned_net(conf, kind, **options)
    updates = 0
    for seed in range(10):
        overflow = seed in (1, 2, 5)
        before = copy.deepcopy(model.state_dict())
        scaled_step(model, optimizer, scaler, seed, overflow)
        if overflow:
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name]), name
        else:
            updates += 1
            step(plain, plain_optimizer, seed)
        assert model.updates == updates
        for name, value in plain.named_parameters():
            other = model.get_parameter(name)
            assert torch.equal(other == 0, value == 0), (seed, name)
            torch.testing.assert_close(other, value)


# ------------------------------------------------------------------------- resume


@pytest.mark.parametrize("at", [0, 1, 2, 5, 6, 10, 12, 15])
@pytest.mark.parametrize("pattern", ["unstructured", "2x3", "2:4"])
def test_a_resumed_training_is_identical(at: int, pattern: str, tmp_path: Path):
    """Before, in and after the schedule, to the bit."""
    conf = dict(sparsity=0.5, start=2, end=12, every=2, pattern=pattern)
    options = dict(lr=0.1, amsgrad=True, weight_decay=0.01)
    whole, whole_optimizer = pruned_net(conf, torch.optim.Adam, **options)
    revived = 0
    for updates in range(1, 19):
        before = {name: each == 0 for name, each in weights_of(whole).items()}
        step(whole, whole_optimizer, updates)
        for name, each in weights_of(whole).items():
            revived += int((updates > at) * (before[name] & (each != 0)).sum())
        if updates == max(at, 1):
            state = dict(
                model=whole.state_dict(), optimizer=whole_optimizer.state_dict()
            )
            if at:
                torch.save(state, tmp_path / "checkpoint.pth")
    assert revived or at >= 10
    model, optimizer = pruned_net(conf, torch.optim.Adam, **options)
    if at:
        state = torch.load(tmp_path / "checkpoint.pth")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    assert model.updates == at
    for updates in range(at + 1, 19):
        step(model, optimizer, updates)
    same(whole.state_dict(), model.state_dict())
    same(whole_optimizer.state_dict(), optimizer.state_dict())
    assert whole.pruner.stats(18) == model.pruner.stats(18)


def test_a_resumed_pruner_knows_its_sparsity():
    conf = dict(sparsity=0.5, start=1, end=4, every=1)
    model, optimizer = pruned_net(conf)
    for updates in range(1, 3):
        step(model, optimizer, updates)
    again, resumed = pruned_net(conf)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert again.pruner.stats(2) == model.pruner.stats(2)
    assert again.pruner.stats(2)["sparsity"] > 0.1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(exclude=["conv.*"]),
            r"exclude: \(\) there, \('conv.\*',\) now; its param",
        ),
        (dict(end=9), "end: 4 there, 9 now"),
        (dict(sparsity=0.9), "sparsity: 0.5 there, 0.9 now"),
        (dict(pattern="2:4"), "pattern: unstructured there, 2:4 now"),
    ],
)
def test_a_checkpoint_pruned_with_other_settings_is_refused(change: dict, message: str):
    conf = dict(sparsity=0.5, start=1, end=4, every=1)
    model, optimizer = pruned_net(conf)
    step(model, optimizer, 1)
    step(model, optimizer, 2)
    _, resumed = pruned_net({**conf, **change})
    message = (
        f"kd_conf.pruning: the checkpoint was pruned with other settings .*{message}"
    )
    with pytest.raises(ValueError, match=message):
        resumed.load_state_dict(optimizer.state_dict())


def test_nothing_is_added_to_the_model():
    model, optimizer = pruned_net(dict(sparsity=0.5, start=1, end=4, every=1))
    names = list(Net().state_dict())
    step(model, optimizer, 1)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == [
        name for name, _ in Net().named_modules()
    ]


# --------------------------------------------------------------- several processes


def prune_as_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    model, optimizer = pruned_net(dict(sparsity=0.6, start=1, end=3, every=1))
    masks = []
    for updates in range(1, 6):
        step(model, optimizer, 10 * updates + rank)  # they drift apart
        masks.append({name: each == 0 for name, each in weights_of(model).items()})
    torch.save((masks, model.state_dict()), folder / f"rank{rank}.pth")
    torch.distributed.destroy_process_group()


def test_all_ranks_prune_what_the_first_one_does(tmp_path: Path):
    run_two_ranks(prune_as_rank, tmp_path)
    (first, one), (second, two) = (
        torch.load(tmp_path / f"rank{n}.pth") for n in (0, 1)
    )
    assert not torch.equal(one["linear.weight"], two["linear.weight"])
    for masks, others in zip(first, second):
        for name, mask in masks.items():
            assert torch.equal(mask, others[name]), name
    expected = {n: math.floor(0.6 * m.numel() + 0.5) for n, m in first[-1].items()}
    assert {n: int(m.sum()) for n, m in first[-1].items()} == expected


# ---------------------------------------------------------------- which parameters


class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.encoder = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)])
        self.norm = nn.LayerNorm(4)
        self.lstm = nn.LSTM(4, 4)
        self.tied = nn.Linear(4, 8)
        self.tied.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.kd_projections = nn.ModuleList([nn.Linear(4, 8)])


ALL = ["encoder.0.weight", "encoder.1.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]
CHOSEN = [
    (dict(), ALL),
    (dict(parameters=["encoder.*"]), ALL[:2]),
    (dict(parameters=["*.1.*", "lstm.weight_h*"]), [ALL[1], ALL[3]]),
    (dict(parameters=["lstm.weight_[i]h_l0"]), [ALL[2]]),
    (dict(exclude=["lstm.*"]), ALL[:2]),
    (dict(parameters=["encoder.*"], exclude=["*.0.weight"]), [ALL[1]]),
    (dict(others=["embed.weight"]), ["embed.weight", *ALL]),
    (
        dict(parameters=["lstm.*"], others=["norm.*", "encoder.*.bias"]),
        ["encoder.0.bias", "encoder.1.bias", "norm.weight", "norm.bias", *ALL[2:]],
    ),
    (dict(parameters=[], others=["embed.*"]), ["embed.weight"]),
    (dict(others=["*"], exclude=["*bias*", "scale", "norm.*"]), ["embed.weight", *ALL]),
]


@pytest.mark.parametrize("patterns, expected", CHOSEN)
def test_parameters_by_pattern(patterns: dict, expected: list[str]):
    pruner = make_pruner(Choice(), PruningConf(sparsity=0.5, end=1, **patterns))
    assert list(pruner.weights) == expected


@pytest.mark.parametrize(
    "patterns, message",
    [
        (
            dict(parameters=["decoder.*"]),
            "parameters: 'decoder..' matches none .*encoder.0",
        ),
        (dict(parameters=["lstm.*", "x"]), "parameters: 'x' matches none"),
        (dict(parameters=["LSTM.*"]), "parameters: 'LSTM..' matches none"),
        (dict(parameters=["embed.*"]), "parameters: 'embed..' matches none"),
        (dict(parameters=["*.bias"]), "parameters: '..bias' matches none"),
        (dict(exclude=["decoder.*"]), "exclude: 'decoder..' matches none"),
        (dict(others=["decoder.*"]), "others: 'decoder..' matches none .*embed.weight"),
        (dict(others=["encoder.*.weight"]), "others: 'encoder...weight' matches none"),
        (dict(others=["kd_projections.*"]), "others: 'kd_projections..' matches none"),
    ],
)
def test_a_pattern_that_matches_nothing(patterns: dict, message: str):
    conf = PruningConf(sparsity=0.5, end=1, **patterns)
    with pytest.raises(ValueError, match=f"kd_conf.pruning.{message}"):
        make_pruner(Choice(), conf)


def test_nothing_left_to_prune():
    message = "kd_conf.pruning: no trainable parameter is left .*exclude: "
    for patterns in (dict(exclude=["*"]), dict(parameters=[])):
        with pytest.raises(ValueError, match=message):
            make_pruner(Choice(), PruningConf(sparsity=0.5, end=1, **patterns))
    with pytest.raises(
        ValueError, match="no trainable parameter is left with pattern: 2:4"
    ):
        model = nn.ModuleDict(dict(odd=nn.Linear(6, 4)))
        make_pruner(model, PruningConf(sparsity=0.5, end=1, pattern="2:4"))


def test_frozen_parameters_are_left():
    torch.manual_seed(1)
    model = Net()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(("lstm.", "conv."))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.pruner = make_pruner(model, PruningConf(sparsity=0.5, start=1, end=1))
    follow(model, optimizer)
    assert list(model.pruner.weights) == ["depth.weight", "linear.weight", "out.weight"]
    step(model, optimizer, 1)
    for name, value in frozen.items():
        assert torch.equal(model.get_parameter(name), value)
    for weight in model.pruner.weights.values():
        assert int((weight == 0).sum()) == math.floor(0.5 * weight.numel() + 0.5)


def test_all_other_parameters():
    """Also a single number, such as the scale of ESPnet's scaled positions."""
    model = Choice()
    conf = PruningConf(sparsity=0.25, start=1, end=1, others=("*",))
    pruner = make_pruner(model, conf)
    assert "scale" in pruner.weights and "norm.bias" in pruner.weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.after_update(1, optimizer)
    assert model.scale == 1
    assert int((model.embed.weight == 0).sum()) == 8


def test_rows_that_two_of_four_leaves_dense_are_named(caplog):
    model, optimizer = pruned_net(dict(sparsity=0.5, start=1, end=1, pattern="2:4"))
    assert "4; these stay dense" in caplog.text.replace("four", "4")
    line = next(r.message for r in caplog.records if "dense" in r.message)
    assert line.startswith("kd_conf.pruning.pattern: 2:4 ")
    named = line.split("dense: ")[1].split(", ")
    assert named == ["conv.weight", "depth.weight", "out.weight"]
    step(model, optimizer, 1)
    for name, weight in weights_of(model).items():
        if name in named:
            assert not (weight == 0).any()
        else:
            assert ((weight == 0).reshape(-1, 4).sum(1) == 2).all()


def test_what_is_pruned_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        pruned_net(dict(sparsity=0.6, end=1, parameters=["lstm.*"]))
    assert "60% of 2 weights with 768 of" in caplog.text
    assert "lstm.weight_ih_l0, lstm.weight_hh_l0" in caplog.text


# ------------------------------------------------------------------- configuration


def parse(**pruning) -> PruningConf:
    return parse_kd_conf(dict(pruning=pruning)).pruning


def test_values_are_taken_over():
    assert parse(sparsity=0.6, end=10) == PruningConf(0.6, 10, 0, 100, 0.0)
    conf = parse(
        sparsity=0.5,
        end=9,
        start=9,
        every=1,
        initial_sparsity=0.5,
        pattern="2:4",
        ranking="global",
        parameters=["a.*"],
        exclude=["b"],
        others=[],
    )
    expected = PruningConf(
        0.5, 9, 9, 1, 0.5, "2:4", "global", ("a.*",), ("b",), tuple()
    )
    assert conf == expected
    assert parse_kd_conf({}) == parse_kd_conf(dict(pruning=None)) == KDConf()
    assert not parse_kd_conf(dict(pruning=dict(sparsity=0, end=1))).needs_teacher


MISTAKES = [
    (dict(), "sparsity"),
    (dict(sparsity=None), "sparsity: None is not a number"),
    (dict(sparsity="0.9"), "sparsity: '0.9' is not a number"),
    (dict(sparsity=True), "sparsity: True is not a number"),
    (dict(sparsity=float("nan")), "sparsity: nan is not finite"),
    (dict(sparsity=-0.1), "sparsity: -0.1 must be at least 0"),
    (dict(sparsity=1), "sparsity: 1 must be .* below 1"),
    (dict(sparsity=1.0), "sparsity: 1.0 must be .* below 1"),
    (dict(sparsity=90), "sparsity: 90 must be a share .* below 1"),
    (
        dict(sparsity=0.6, pattern="2:4"),
        "sparsity: 0.6 .* at most 0.5 with pattern: 2:4",
    ),
    (dict(initial_sparsity=0.7), "initial_sparsity: 0.7 is above sparsity: 0.6"),
    (dict(initial_sparsity=-1), "initial_sparsity: -1 must be at least 0"),
    (dict(initial_sparsity="0"), "initial_sparsity: '0' is not a number"),
    (dict(initial_sparsity=None), "initial_sparsity: None is not a number"),
    (dict(start=-1), "start: -1 must be at least 0"),
    (dict(start=1.5), "start: 1.5 is not a whole number"),
    (dict(start=None), "start: None is not a whole number"),
    (dict(start=11), "end: 10 is before start: 11"),
    (dict(end=0), "end: 0 must be at least 1"),
    (dict(end=1e4), "end: 10000.0 is not a whole number"),
    (dict(end=None), "end: None is not a whole number"),
    (dict(every=0), "every: 0 must be at least 1"),
    (dict(every=True), "every: True is not a whole number"),
    (dict(every="5"), "every: '5' is not a whole number"),
    (dict(ranking="model"), "ranking: 'model' is not one of .*'layer', 'global'"),
    (dict(ranking=None), "ranking: None is not one of"),
    (dict(ranking=["layer"]), "ranking: .* is not one of"),
    (dict(pattern="4:8"), "pattern: '4:8' is not one of"),
    (dict(pattern=124), "pattern: 124 is not one of .*in quotes"),
    (dict(pattern=None), "pattern: None is not one of"),
    (dict(parameters="encoder.*"), "parameters: 'encoder..' is not a list"),
    (dict(parameters=[1]), r"parameters: \[1\] is not a list"),
    (dict(parameters=None), "parameters: None is not a list"),
    (dict(exclude="x"), "exclude: 'x' is not a list"),
    (dict(exclude=3), "exclude: 3 is not a list"),
    (dict(others=None), "others: None is not a list"),
    (dict(others=dict(a=1)), "others: .* is not a list"),
    (dict(frequency=10), "frequency: no such field; known: .*'every'"),
]


@pytest.mark.parametrize("conf, message", MISTAKES)
def test_a_mistake_is_named(conf: dict, message: str):
    good = dict(sparsity=0.6, end=10) if conf else {}
    with pytest.raises(ValueError, match=f"kd_conf.pruning.*{message}"):
        parse(**{**good, **conf})


@pytest.mark.parametrize("value", ["0.9", 0.9, [], True])
def test_a_value_that_is_not_a_mapping(value):
    with pytest.raises(ValueError, match="kd_conf.pruning: .* is not a mapping"):
        parse_kd_conf(dict(pruning=value))
