"""KD losses in training: values by hand, one student forward, teachers kept apart."""

import math

import pytest
import torch

from espnet_kd.distill.batch import BatchKD
from espnet_kd.lattice import has_k2
from tests.tasks import by_hand
from tests.tasks.recipe import Recipe, load_stock, teachers, train_mode

needs_k2 = pytest.mark.skipif(not has_k2(), reason="the pruned loss needs k2")

FRAMES = dict(nodes="frames", temperature=2.0)
TOKENS = dict(nodes="tokens", classes="topk", k=3, tail="renormalize")
COLLAPSED = dict(nodes="lattice", classes="collapsed", weight=0.05, temperature=1.5)
LATTICE = dict(nodes="lattice", reduction="node", weight=2.0)
LATTICE_TOPK = dict(nodes="lattice", classes="topk", k=3)
PATH = dict(nodes="path", temperature=2.0)
PATH_TOPK = dict(nodes="path", classes="topk", k=4, tail="renormalize", shift=2)
# Student kind, teacher kind, losses with the names of their statistics.
COMBINATIONS = {
    "hybrid": ("hybrid", "hybrid", dict(loss_kd_frames=FRAMES, loss_kd_tokens=TOKENS)),
    "hybrid topk": (
        "hybrid",
        "hybrid",
        dict(
            loss_kd_frames=dict(nodes="frames", classes="topk", k=2),
            loss_kd_tokens=dict(nodes="tokens", reduction="node"),
        ),
    ),
    "attention": ("attention", "hybrid", dict(loss_kd_tokens=TOKENS)),
    "ctc": ("ctc", "hybrid", dict(loss_kd_frames=FRAMES)),
    "transducer": (
        "transducer",
        "transducer",
        dict(
            loss_kd_lattice_collapsed=COLLAPSED,
            loss_kd_lattice_full=LATTICE,
            loss_kd_path_full=PATH,
            loss_kd_path_topk=PATH_TOPK,
            loss_kd_frames=FRAMES,
        ),
    ),
    "asr_transducer": (
        "asr_transducer",
        "asr_transducer",
        dict(
            loss_kd_lattice_collapsed=COLLAPSED,
            loss_kd_lattice_topk=LATTICE_TOPK,
            loss_kd_path_full=PATH,
            loss_kd_path_topk=PATH_TOPK,
            loss_kd_frames=FRAMES,
        ),
    ),
    "teacher of the other task": (
        "asr_transducer",
        "transducer",
        dict(loss_kd_path=PATH, loss_kd_frames=FRAMES),
    ),
    "pruned": (
        "pruned",
        "asr_transducer",
        dict(
            loss_kd_lattice_collapsed=COLLAPSED,
            loss_kd_lattice_full=LATTICE,
            loss_kd_path=PATH,
            loss_kd_frames=FRAMES,
        ),
    ),
}
# Students and teachers of different tasks need equal numbers of frames.
CASES = [
    pytest.param(name, marks=needs_k2 if name == "pruned" else ())
    for name in COMBINATIONS
]


def student_of(recipe: Recipe, kind: str, models, losses, **changes):
    conf = dict(losses=list(losses), **changes.pop("kd_conf", {}))
    return recipe.build(kind, seed=5, kd_conf=conf, **teachers(*models), **changes)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "kd_weight"])
@pytest.mark.parametrize("case", CASES)
def test_values_equal_those_by_hand(recipe: Recipe, case: str, weighted: bool):
    kind, teacher_kind, losses = COMBINATIONS[case]
    model = recipe.teacher(teacher_kind)
    student = student_of(
        recipe, kind, [model], losses.values(), kd_conf=dict(hard_weight=0.7)
    )
    plain = recipe.build(kind, seed=5, stock=True)
    batch = recipe.batch(weights=weighted)
    expected = {
        name: by_hand.batch_loss(plain, [load_stock(model)], batch, loss)
        for name, loss in losses.items()
    }
    for mode in (train_mode(student), student.eval()):
        loss, stats, weight = mode(**batch)
        for name, value in expected.items():
            assert float(stats[name]) == pytest.approx(value, rel=2e-4), name
            assert value > 1e-4  # else the comparison would be empty
        kd = sum(each.get("weight", 1.0) * expected[n] for n, each in losses.items())
        hard = float(stats["loss_hard"])
        total = 0.7 * hard + kd if student.training else hard
        assert float(loss) == pytest.approx(total, rel=1e-4)
        assert float(stats["loss"]) == float(loss)
        assert int(weight) == 4


@pytest.mark.parametrize("case", CASES)
def test_every_part_gets_the_gradient_and_the_teacher_none(recipe: Recipe, case: str):
    kind, teacher_kind, losses = COMBINATIONS[case]
    student = student_of(
        recipe,
        kind,
        [recipe.teacher(teacher_kind)],
        losses.values(),
        kd_conf=dict(hard_weight=0.0),
    )
    train_mode(student)(**recipe.batch())[0].backward()
    compared = {loss["nodes"] for loss in losses.values()}
    moved = {
        name.split(".")[0]
        for name, p in student.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    parts = {"frames": {"ctc", "ctc_lin"}, "tokens": {"decoder"}}
    for nodes in compared:
        assert moved & parts.get(nodes, {"joint_network"})
    assert "encoder" in moved
    (teacher,) = student.distillation.source.ensemble.models
    for parameter in teacher.parameters():
        assert parameter.grad is None and not parameter.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_one_student_forward_and_the_same_statistics_in_every_step(
    recipe: Recipe, case: str
):
    kind, teacher_kind, losses = COMBINATIONS[case]
    model = recipe.teacher(teacher_kind)
    student = student_of(recipe, kind, [model], losses.values()).train()
    calls = dict.fromkeys(("encoder", "decoder"), 0)

    def count(name):
        def hook(module, inputs, output):
            calls[name] += 1

        return hook

    for name in calls:
        if getattr(student, name) is not None:
            getattr(student, name).register_forward_hook(count(name))
    keys = set()
    for step, indices in enumerate(((0, 1, 2, 3), (4, 5), (7,)), start=1):
        batch = recipe.batch(indices, weights=step > 1)
        _, stats, _ = student(**batch)
        keys.add(frozenset(name for name, value in stats.items() if value is not None))
        assert calls["encoder"] == step
        assert calls["decoder"] in (0, step)
        kept = student.recorder  # nothing: the graph would stay in memory
        assert kept.outputs is None and kept.reading is None
    assert len(keys) == 1
    assert set(losses) | {"loss", "loss_hard"} <= set(next(iter(keys)))


def test_a_ctc_loss_of_zero_stays_among_the_statistics(recipe: Recipe):
    losses = [dict(nodes="path")]
    model = recipe.teacher("asr_transducer")
    student = student_of(recipe, "asr_transducer", [model], losses).train()
    batch = recipe.batch(weights=True)
    batch["kd_weight"].zero_()
    _, stats, _ = student(**batch)
    assert math.isnan(float(stats["loss_aux_ctc"]))


def test_student_equal_to_its_teacher_has_no_kd_loss(recipe: Recipe):
    kind, _, losses = COMBINATIONS["asr_transducer"]
    model = recipe.teacher(kind)
    losses = [loss for loss in losses.values() if not loss.get("shift")]
    losses = [{**loss, "tail": "bucket"} for loss in losses]
    student = student_of(recipe, kind, [model], losses, kd_conf=dict(hard_weight=0.0))
    student.load_state_dict(torch.load(model.checkpoint))
    loss, stats, _ = train_mode(student)(**recipe.batch())
    assert float(loss) == pytest.approx(0, abs=1e-4)
    loss.backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().max() < 1e-5, name


# ----------------------------------------------------------- teachers stay outside


@pytest.mark.parametrize("kind", ["hybrid", "asr_transducer"])
def test_the_teacher_is_not_part_of_the_student(recipe: Recipe, kind: str):
    losses = [dict(nodes="frames")]
    student = student_of(recipe, kind, [recipe.teacher(kind)], losses)
    stock = recipe.build(kind, seed=5, stock=True)
    (teacher,) = student.distillation.source.ensemble.models
    assert student.state_dict().keys() == stock.state_dict().keys()
    assert [name for name, _ in student.named_parameters()] == [
        name for name, _ in stock.named_parameters()
    ]
    assert teacher not in set(student.modules())
    assert not set(student.parameters()) & set(teacher.parameters())
    optimizer = torch.optim.Adam(student.parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(parameter) for parameter in teacher.parameters()}


def test_the_teacher_stays_in_evaluation_and_follows_a_cast(recipe: Recipe):
    model = recipe.teacher("hybrid")
    losses = [dict(nodes=["frames", "tokens"])]
    student = student_of(recipe, "hybrid", [model], losses)
    (teacher,) = student.distillation.source.ensemble.models
    student.train()
    # Some modules without parameters are default arguments, one for all models.
    own = set(teacher.modules()) - set(student.modules())
    assert teacher in own and not any(module.training for module in own)
    student.to(torch.float64)
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}
    batch = recipe.batch()
    batch["speech"] = batch["speech"].double()
    single = student_of(recipe, "hybrid", [model], losses).eval()(**recipe.batch())
    double = student.eval()(**batch)
    assert double[0].dtype == torch.float64
    for name in ("loss_kd_frames", "loss_kd_tokens"):
        assert float(double[1][name]) == pytest.approx(float(single[1][name]), rel=1e-4)


def test_nothing_of_the_teacher_is_stored(recipe: Recipe):
    conf = dict(losses=[dict(nodes=["frames", "tokens"])])
    folder = recipe.train(
        "hybrid", "stored", kd_conf=conf, **teachers(recipe.teacher("hybrid"))
    )
    stock = recipe.build("hybrid", stock=True).state_dict().keys()
    states = torch.load(folder / "checkpoint.pth", **recipe.all_types())
    assert states["model"].keys() == stock
    assert len(states["optimizers"][0]["param_groups"][0]["params"]) == len(
        list(recipe.build("hybrid", stock=True).parameters())
    )
    for name in ("1epoch.pth", "valid.loss.ave_1best.pth"):
        assert torch.load(folder / name).keys() == stock


# ------------------------------------------------------------------ frame rates

FAST = {
    "hybrid": dict(encoder_conf=dict(input_layer="conv2d2")),
    "asr_transducer": dict(encoder_conf=dict(input_conf=dict(subsampling_factor=2))),
}


@pytest.mark.parametrize("rate", ["stride", "pool"])
@pytest.mark.parametrize("faster", ["teacher", "student"])
@pytest.mark.parametrize("kind", list(FAST))
def test_frame_rates_with_a_ratio_of_two(recipe: Recipe, kind, faster, rate):
    nodes = dict(hybrid=["frames", "tokens"], asr_transducer=["frames", "lattice"])
    losses = [dict(nodes=each) for each in nodes[kind]] + (
        [dict(nodes="path")] if kind == "asr_transducer" else []
    )
    fast = FAST[kind]
    if faster == "teacher":
        model = recipe.teacher(kind, f"fast_{kind}", **fast)
        changes, strides = {}, (1, 2)
    else:
        model, changes, strides = recipe.teacher(kind), fast, (2, 1)
    student = student_of(
        recipe, kind, [model], losses, kd_conf=dict(rate=rate), **changes
    )
    assert student.distillation.rates.student == strides[0]
    batch = recipe.batch()
    loss, stats, _ = train_mode(student)(**batch)
    loss.backward()
    plain = recipe.build(kind, seed=5, stock=True, **changes)
    for each in losses:
        expected = by_hand.batch_loss(
            plain, [load_stock(model)], batch, each, strides=strides, rate=rate
        )
        name = f"loss_kd_{each['nodes']}"
        assert float(stats[name]) == pytest.approx(expected, rel=2e-4)


# -------------------------------------------------------------- several teachers


def test_teachers_count_by_their_weights(recipe: Recipe):
    kind, _, losses = COMBINATIONS["asr_transducer"]
    models = [recipe.teacher(kind), recipe.teacher(kind, "second_teacher")]
    batch, plain = recipe.batch(), recipe.build(kind, seed=5, stock=True)
    stock = [load_stock(model) for model in models]
    values = {}
    for weights in ([1.0, 3.0], [1.0, 1.0]):
        student = student_of(
            recipe, kind, models, losses.values(), teacher_weight=weights
        )
        _, stats, _ = student(**batch)
        for name, loss in losses.items():
            expected = by_hand.batch_loss(plain, stock, batch, loss, weights)
            assert float(stats[name]) == pytest.approx(expected, rel=2e-4), name
        values[tuple(weights)] = float(stats["loss_kd_frames"])
    assert values[1.0, 3.0] != pytest.approx(values[1.0, 1.0], rel=1e-3)
    default = student_of(recipe, kind, models, losses.values())(**batch)[1]
    assert float(default["loss_kd_frames"]) == values[1.0, 1.0]


def test_a_teacher_named_twice_counts_as_one(recipe: Recipe):
    losses = [dict(nodes="frames"), dict(nodes="tokens", temperature=2.0)]
    model = recipe.teacher("hybrid")
    values = [
        student_of(recipe, "hybrid", models, losses)(**recipe.batch())[1]
        for models in ([model], [model, model])
    ]
    for name in ("loss_kd_frames", "loss_kd_tokens"):
        assert float(values[1][name]) == pytest.approx(float(values[0][name]), rel=1e-5)


# ---------------------------------------------------------------------- precision


def logits_of(outputs) -> list[torch.Tensor]:
    kinds = (outputs.frames, outputs.tokens)
    logits = [each.logits for each in kinds if each is not None]
    return logits + ([outputs.lattice.logits.encoder] if outputs.lattice else [])


@pytest.mark.parametrize("case", CASES)
def test_autocast_leaves_kd_in_full_precision(recipe: Recipe, case: str, monkeypatch):
    """Everything after the student's encoder runs in bfloat16, KD in float32.

    torch 1.13 has no layer normalisation for autocast on a CPU, so the encoder's output
    is rounded instead of computed in bfloat16.
    """
    kind, teacher_kind, losses = COMBINATIONS[case]
    student = student_of(recipe, kind, [recipe.teacher(teacher_kind)], losses.values())
    batch = recipe.batch()
    _, full, _ = student(**batch)
    seen = []
    encode, compute = student.encode, BatchKD.losses

    def rounded(*args):
        with torch.autocast("cpu", enabled=False):
            encoder_out, lengths = encode(*args)
        return encoder_out.bfloat16(), lengths

    def watched(kd, outputs):
        seen.extend(logits.dtype for logits in logits_of(outputs))
        total, parts = compute(kd, outputs)
        assert total.dtype == torch.float32
        return total, parts

    student.encode = rounded
    monkeypatch.setattr(BatchKD, "losses", watched)
    train_mode(student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, stats, _ = student(**batch)
    loss.backward()
    assert torch.bfloat16 in seen
    for name in losses:
        assert float(stats[name]) == pytest.approx(float(full[name]), rel=0.1), name
    for name, parameter in student.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
