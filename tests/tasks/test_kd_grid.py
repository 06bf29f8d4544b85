"""Every cell nodes x classes of `kd_conf` in training of real ESPnet models.

Values and gradients by hand, in float64: loops over nodes and alignments on the logits
that stock ESPnet models output for each utterance alone.
"""

import contextlib
import gc
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from espnet_kd.distill.batch import BatchKD
from espnet_kd.lattice import has_k2, reading
from espnet_kd.models.joint import LeanJointNetwork
from tests.tasks import by_hand
from tests.tasks.recipe import Model, Recipe, load_stock, teachers, train_mode

needs_k2 = pytest.mark.skipif(not has_k2(), reason="the pruned loss needs k2")
PRUNED = pytest.param("pruned", marks=needs_k2)
TRANSDUCERS = ["transducer", "asr_transducer", PRUNED]
LEAN_OR_DENSE = [("asr_transducer", True), ("transducer", False)]
PRUNED_TOO = LEAN_OR_DENSE + [
    pytest.param("pruned", lean, marks=needs_k2) for lean in (True, False)
]
TEACHERS = dict(pruned="asr_transducer", ctc="hybrid", attention="hybrid")

BUCKET = dict(classes="topk", k=3)
RENORMALIZE = dict(classes="topk", k=4, tail="renormalize")
COLLAPSED = dict(classes="collapsed")
FLOAT32 = 1e-6  # of frames and tokens the teachers' logits are cast to float32
OCCUPANCY = dict(weighting="occupancy")
NBEST = dict(nodes="path", paths="nbest", num_paths=4)
WINDOW = dict(nodes="path", window=3, shift=2)
CELLS = {
    "lattice": [
        dict(nodes="lattice", temperature=2.0),
        dict(nodes="lattice", temperature=1.5, **BUCKET),
        dict(nodes="lattice", **RENORMALIZE),
        dict(nodes="lattice", classes="topk", k=100),  # more than there are
        dict(nodes="lattice", **COLLAPSED),
    ],
    "weighted lattice": [
        dict(nodes="lattice", **OCCUPANCY),
        dict(nodes="lattice", **BUCKET, **OCCUPANCY),
        dict(
            OCCUPANCY, nodes="lattice", reduction="node", **COLLAPSED, temperature=2.0
        ),
    ],
    "band": [
        dict(nodes="band", width=2, reduction="node"),
        dict(nodes="band", width=3, temperature=2.0, **RENORMALIZE),
        dict(nodes="band", width=3, **BUCKET),
        dict(nodes="band", width=3, temperature=1.5, **COLLAPSED),
        dict(nodes="band", width=50, **COLLAPSED),  # wider than the lattice
        dict(nodes="band", width=2, **COLLAPSED, **OCCUPANCY),
        dict(nodes="band", width=3, temperature=2.0, **OCCUPANCY),
    ],
    "path": [
        dict(nodes="path", temperature=2.0, reduction="node"),
        dict(nodes="path", temperature=2.0, **BUCKET),
        dict(nodes="path", temperature=1.5, **COLLAPSED),
        dict(nodes="path", shift=2, **COLLAPSED),
        dict(nodes="path", shift=11),  # beyond the end of short utterances
    ],
    "n best paths": [
        NBEST,
        dict(**NBEST, shift=1, reduction="node", **BUCKET),
        dict(**NBEST, temperature=2.0, **COLLAPSED),
        dict(nodes="path", paths="nbest", num_paths=15),  # more than there are
    ],
    "window": [
        WINDOW,
        dict(**WINDOW, temperature=2.0, **RENORMALIZE),
        dict(nodes="path", window=2, shift=3, **COLLAPSED),
        dict(**NBEST, window=3, shift=2, reduction="node"),
    ],
    "other divergences": [
        dict(nodes="lattice", temperature=2.0, divergence="reverse_kl"),
        dict(nodes="lattice", divergence="jsd", **COLLAPSED, **OCCUPANCY),
        dict(nodes="band", width=3, divergence="reverse_kl", **BUCKET),
        dict(nodes="path", divergence="jsd", **RENORMALIZE),
        dict(**WINDOW, temperature=1.5, divergence="reverse_kl", **COLLAPSED),
    ],
}


# ------------------------------------------------------------------------- models


@contextlib.contextmanager
def default(dtype: torch.dtype = torch.float64):
    """What ESPnet creates (states of decoders) has that type as well."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def forward(model: torch.nn.Module, batch: dict):
    dtype = next(model.parameters()).dtype
    with default(dtype):
        return model(**dict(batch, speech=batch["speech"].to(dtype)))


def precision(kind: str, lean: bool) -> torch.dtype:
    """Stock ESPnet casts the logits of asr_transducer's joint network to float32."""
    is_single = kind == "asr_transducer" and not lean
    return torch.float32 if is_single else torch.float64


OUTPUTS = ("joint_network.", "ctc_lin.", "ctc.ctc_lo.", "decoder.output_layer.")


def enlarged(state: dict) -> dict:
    """Untrained models predict nearly the same at all nodes; these do not."""
    return {n: 4 * x if n.startswith(OUTPUTS) else x for n, x in state.items()}


def teacher_of(recipe: Recipe, kind: str, name: str | None = None, **changes) -> Model:
    kind = TEACHERS.get(kind, kind)
    model = recipe.teacher(kind, name, **changes)
    checkpoint = Path(model.checkpoint).with_name("enlarged.pth")
    if not checkpoint.exists():
        torch.save(enlarged(torch.load(model.checkpoint)), checkpoint)
    return Model(model.config, str(checkpoint))


def build(recipe: Recipe, kind: str, **changes) -> torch.nn.Module:
    model = recipe.build(kind, seed=5, **changes)
    model.load_state_dict(enlarged(model.state_dict()))
    return train_mode(model)


def student_of(recipe: Recipe, kind: str, losses, models=None, **changes):
    """A student that learns from the teacher alone."""
    conf = dict(hard_weight=0.0, losses=list(losses))
    conf.update(changes.pop("kd_conf", {}))
    models = models or [teacher_of(recipe, kind)]
    options = dict(changes, kd_conf=conf, **teachers(*models))
    dtype = precision(kind, conf.get("lean_joint", True))
    return build(recipe, kind, **options).to(dtype)


MADE: dict[str, torch.nn.Module] = {}


def plain_of(recipe: Recipe, kind: str, **changes) -> torch.nn.Module:
    """The stock model that `student_of` starts from."""
    key = f"{recipe.folder} {kind} {changes}"
    if key not in MADE:
        MADE[key] = build(recipe, kind, stock=True, **changes).double()
    MADE[key].zero_grad(set_to_none=True)
    return MADE[key]


def stock_of(model: Model) -> torch.nn.Module:
    """A teacher as stock ESPnet loads it."""
    if model.checkpoint not in MADE:
        MADE[model.checkpoint] = load_stock(model).double()
    return MADE[model.checkpoint]


def batch_of(recipe: Recipe, indices=(0, 1, 3), weights: bool = False) -> dict:
    batch = recipe.batch(indices, weights=weights)
    return dict(batch, speech=batch["speech"].double())


def values_of(stats: dict) -> list[float]:
    """Of the KD losses, in their order."""
    return [float(x) for name, x in stats.items() if name.startswith("loss_kd_")]


def gradients_of(model: torch.nn.Module) -> dict:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


def assert_gradients(ours: torch.nn.Module, expected: torch.nn.Module, rtol=1e-7):
    ours, expected = gradients_of(ours), gradients_of(expected)
    ours = {name: x.to(expected[name].dtype) for name, x in ours.items()}
    assert ours.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    assert largest > 1e-4  # else the comparison would be empty
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=rtol, atol=rtol * largest, msg=name
        )


def assert_by_hand(
    recipe: Recipe,
    kind: str,
    losses,
    batch: dict,
    models=None,
    kd_conf=None,
    weights=(1.0,),
    changes=None,
    rtol=1e-8,
    **by_hand_options,
) -> torch.nn.Module:
    """Values of all losses, their sum and its gradient; returns the student."""
    models, changes = models or [teacher_of(recipe, kind)], changes or {}
    conf = dict(kd_conf=kd_conf or {}, teacher_weight=list(weights))
    student = student_of(recipe, kind, losses, models, **conf, **changes)
    plain = plain_of(recipe, kind, **changes)
    stock = [stock_of(model) for model in models]
    if next(student.parameters()).dtype == torch.float32:
        rtol = 2e-4
    loss, stats, _ = forward(student, batch)
    loss.backward()
    with default():
        expected = [
            by_hand.batch_loss(
                plain, stock, batch, each, weights, backward=True, **by_hand_options
            )
            for each in losses
        ]
    assert values_of(stats) == pytest.approx(expected, rel=rtol)
    assert min(expected) > 1e-3
    total = sum(x.get("weight", 1.0) * v for x, v in zip(losses, expected))
    assert float(loss) == pytest.approx(total, rel=rtol)
    assert_gradients(student, plain, rtol=max(1e-7, rtol))
    return student


def cells(*names: str) -> list[dict]:
    """Each has a different weight, so that no gradient hides another."""
    losses = [loss for name in names or CELLS for loss in CELLS[name]]
    return [dict(loss, weight=1 / (1 + n % 5)) for n, loss in enumerate(losses)]


# ------------------------------------------------------------------- cell by cell


@pytest.mark.parametrize("nodes", CELLS)
def test_cells(recipe: Recipe, nodes: str):
    assert_by_hand(recipe, "asr_transducer", cells(nodes), batch_of(recipe))


def test_all_cells_at_once(recipe: Recipe):
    """As many kinds of nodes at once as possible, and weights of utterances."""
    batch = batch_of(recipe, (1, 2, 3), weights=True)
    assert_by_hand(recipe, "transducer", cells(), batch)


def test_frames_and_tokens_beside_a_lattice(recipe: Recipe):
    losses = [
        dict(nodes="frames", temperature=2.0),
        dict(nodes="band", width=2, **COLLAPSED),
        dict(nodes="frames", **RENORMALIZE),
        dict(nodes="frames", divergence="reverse_kl", **BUCKET),
    ]
    batch = batch_of(recipe, weights=True)
    assert_by_hand(recipe, "asr_transducer", losses, batch, rtol=FLOAT32)


@pytest.mark.parametrize("kind", ["hybrid", "ctc", "attention"])
def test_frames_and_tokens(recipe: Recipe, kind: str):
    nodes = dict(hybrid=("frames", "tokens"), ctc=("frames",), attention=("tokens",))
    losses = [
        dict(nodes=each, **options)
        for each in nodes[kind]
        for options in (dict(temperature=2.0), dict(BUCKET, reduction="node"))
        + (dict(RENORMALIZE, temperature=1.5),)
    ]
    assert_by_hand(recipe, kind, losses, batch_of(recipe), rtol=FLOAT32)


@needs_k2
@pytest.mark.parametrize(
    "lean, topology, prune_range",
    [(True, "regular", 2), (True, "modified", 3), (False, "regular", 3)],
)
def test_all_cells_of_a_pruned_student(recipe: Recipe, lean, topology, prune_range):
    """It uses its own band, whatever `width` is; all other nodes are the teacher's."""
    arguments = dict(prune_range=prune_range, loss_type=topology)
    changes = dict(model_conf=dict(k2_pruned_loss_args=arguments))
    plain = plain_of(recipe, "pruned", **changes)
    assert_by_hand(
        recipe,
        "pruned",
        cells(),
        batch_of(recipe, (0, 2)),
        kd_conf=dict(lean_joint=lean),
        changes=changes,
        band=lambda *utterance: own_band(plain, *utterance, **arguments),
    )


def own_band(model, speech, labels, prune_range: int, loss_type: str):
    """Rows (T, S) that stock ESPnet's pruned loss keeps of an utterance."""
    import k2

    with torch.no_grad():
        encoder_out, _ = model.encode(speech[None], torch.tensor([len(speech)]))
        prefix = torch.cat([torch.tensor([by_hand.BLANK]), labels])[None]
        lm = model.lm_proj(model.decoder(prefix)).float()
        am = model.am_proj(encoder_out).float()
        boundary = torch.tensor([[0, 0, len(labels), am.size(1)]])
        _, use = k2.rnnt_loss_smoothed(
            lm,
            am,
            labels[None],
            by_hand.BLANK,
            lm_only_scale=0.0,
            am_only_scale=0.0,
            boundary=boundary,
            rnnt_type=loss_type,
            return_grad=True,
        )
    return k2.get_rnnt_prune_ranges(*use, boundary, prune_range)[0].numpy()


# ------------------------------------------------------------------------ one pass


class Reads:
    """Nodes of the student that are read in forward passes."""

    def __init__(self, monkeypatch) -> None:
        self.nodes, read = [], reading.read_nodes

        def watched(logits, nodes, *args):
            self.nodes.append(nodes.total)
            return read(logits, nodes, *args)

        monkeypatch.setattr(reading, "read_nodes", watched)


@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_losses_share_one_pass_and_do_not_interact(recipe: Recipe, kind, monkeypatch):
    """Each has the value that it has alone; no node is read twice."""
    losses = [loss for loss in cells() if loss.get("window", 1) == 1]
    band = [loss["nodes"] for loss in losses].index("band")
    chosen = (0, band, len(losses) - 1)
    batch = batch_of(recipe)
    reads, counts, values = Reads(monkeypatch), [], []
    for group in (losses, *([losses[n]] for n in chosen)):
        student = student_of(recipe, kind, group, kd_conf=dict(hard_weight=1.0))
        _, stats, _ = forward(student, batch)
        counts.append(sum(reads.nodes))
        values.append(values_of(stats))
        reads.nodes.clear()
    together, *alone = values
    expected = [together[n] for n in chosen]
    assert sum(alone, []) == pytest.approx(expected, rel=1e-12)
    rows = batch["text_lengths"] + 1
    frames = torch.tensor([12, 23, 10])
    assert counts[0] == int((rows * frames).sum())
    assert all(count <= counts[0] for count in counts)
    if kind == "pruned":  # the band, and of other nodes only those of the losses
        assert counts[2] < counts[0] and counts[3] < counts[0]


# --------------------------------------------------------------------- random paths


def test_sampled_paths_of_a_certain_teacher_are_its_best_path(recipe: Recipe):
    model = teacher_of(recipe, "asr_transducer")
    state = torch.load(model.checkpoint)
    for name in ("joint_network.lin_out.weight", "joint_network.lin_out.bias"):
        state[name] = 300 * state[name]
    certain = Path(model.checkpoint).with_name("certain.pth")
    torch.save(state, certain)
    model = Model(model.config, str(certain))
    losses = [dict(nodes="path", paths="sample", num_paths=3), dict(nodes="path")]
    batch, stock = batch_of(recipe, (1,)), stock_of(model)
    student = student_of(recipe, "asr_transducer", losses, [model])
    values = values_of(forward(student, batch)[1])
    with default():
        speech, labels = by_hand.utterances(batch)[0]
        lattice = by_hand.numbers(by_hand.logits_of(stock, speech, labels))["lattice"]
    best, second = by_hand.best_paths(lattice, labels.tolist(), 2)
    assert best[0] - second[0] > 5  # 1 in 150 samples would be another path
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_sampled_paths_visit_nodes_as_often_as_the_posterior(recipe: Recipe):
    """Their mean over many is the loss of all nodes weighted by occupancy."""
    options = dict(nodes="path", paths="sample", **COLLAPSED)
    losses = [dict(options, num_paths=400), dict(options, num_paths=1)]
    student = student_of(recipe, "asr_transducer", losses)
    plain = plain_of(recipe, "asr_transducer")
    stock = stock_of(teacher_of(recipe, "asr_transducer"))
    batch, draws = batch_of(recipe), []
    mean = dict(nodes="lattice", **COLLAPSED, **OCCUPANCY)
    for seed in (0, 0, *range(1, 6)):
        torch.manual_seed(seed)
        draws.append(values_of(forward(student, batch)[1]))
    with default():
        expected = by_hand.batch_loss(plain, [stock], batch, mean)
    assert draws[0] == draws[1]
    many, single = zip(*draws[1:])
    spread = torch.tensor(single).std()
    assert spread > 0.01 * expected  # each draw is another path
    for value in many:
        assert value == pytest.approx(expected, abs=4 * float(spread) / math.sqrt(400))


# ---------------------------------------------------- ensembles and numbers of frames

MIXED = [
    dict(nodes="lattice", temperature=2.0, **COLLAPSED),
    dict(nodes="lattice", weight=0.3, **BUCKET, **OCCUPANCY),
    dict(nodes="band", width=3, weight=0.5, **COLLAPSED),
    dict(nodes="path", temperature=1.5),
    dict(NBEST, weight=2.0, shift=1, **COLLAPSED),
    dict(WINDOW, weight=1.5, **COLLAPSED),
]


def test_two_teachers(recipe: Recipe):
    models = [
        teacher_of(recipe, "asr_transducer"),
        teacher_of(recipe, "asr_transducer", "second"),
    ]
    options = dict(models=models, weights=(1.0, 3.0))
    losses = [*MIXED, dict(nodes="band", width=2, temperature=2.0)]
    assert_by_hand(recipe, "asr_transducer", losses, batch_of(recipe), **options)


FAST = {
    "transducer": dict(encoder_conf=dict(input_layer="conv2d2")),
    "asr_transducer": dict(encoder_conf=dict(input_conf=dict(subsampling_factor=2))),
}


@pytest.mark.parametrize("rate", ["stride", "pool"])
@pytest.mark.parametrize("faster", ["teacher", "student"])
@pytest.mark.parametrize("kind, lean", LEAN_OR_DENSE)
def test_frame_rates_with_a_ratio_of_two(recipe: Recipe, kind, faster, rate, lean):
    """A lean student pools the projections of its encoder, a dense one its logits.

    A mean of logits is not the logits of a mean, as the joint network has a tanh: with
    `rate: pool` a faster student has another loss with and without `lean_joint`.
        Teachers do the same as a lean student: their encoders' output is pooled.
    """
    changes = {}
    if faster == "student":
        changes, models = FAST[kind], [teacher_of(recipe, kind)]
    else:
        models = [teacher_of(recipe, kind, f"fast_{kind}", **FAST[kind])]
    student = assert_by_hand(
        recipe,
        kind,
        MIXED,
        batch_of(recipe),
        models,
        kd_conf=dict(rate=rate, lean_joint=lean),
        changes=changes,
        strides=(2, 1) if faster == "student" else (1, 2),
        rate=rate,
        is_dense=not lean,
    )
    assert student.distillation.rates.student == (2 if faster == "student" else 1)


def test_pooling_differs_between_lean_and_dense_students(recipe: Recipe):
    """The difference described in `test_frame_rates_with_a_ratio_of_two`."""
    batch, values = batch_of(recipe), {}
    for rate in ("stride", "pool"):
        for lean in (True, False):
            conf = dict(rate=rate, lean_joint=lean)
            student = student_of(
                recipe, "transducer", MIXED[:1], kd_conf=conf, **FAST["transducer"]
            )
            values[rate, lean] = values_of(forward(student, batch)[1])
    assert values["stride", True] == pytest.approx(values["stride", False], rel=1e-10)
    assert values["pool", True] != pytest.approx(values["pool", False], rel=1e-3)


FEWER = dict(frontend_conf=dict(center=False))  # no frames from padding at both ends


@pytest.mark.parametrize("fewer", ["teacher", "student"])
@pytest.mark.parametrize("kind, lean", LEAN_OR_DENSE)
def test_a_frame_more_or_less(recipe: Recipe, kind: str, fewer: str, lean: bool):
    changes = FEWER if fewer == "student" else {}
    models = [teacher_of(recipe, kind)]
    if fewer == "teacher":
        models = [teacher_of(recipe, kind, f"fewer_{kind}", **FEWER)]
    batch = batch_of(recipe)
    assert_by_hand(
        recipe,
        kind,
        [*MIXED, dict(nodes="frames")],
        batch,
        models,
        kd_conf=dict(lean_joint=lean),
        changes=changes,
        rtol=FLOAT32,
    )
    speech = batch["speech"], batch["speech_lengths"]
    both = plain_of(recipe, kind, **changes), stock_of(models[0])
    own, taught = (model.encode(*speech)[1].tolist() for model in both)
    difference = 1 if fewer == "student" else -1
    assert [b - a for a, b in zip(own, taught)].count(difference) >= 1


# ----------------------------------------------------------------------- sequences

HYPOTHESES = [1, 1, 1, 4, 0, 0]
LISTS = [[0, 1, 2], [3], [4, 5]]
SEQUENCE = [
    dict(nodes="sequence"),
    dict(nodes="sequence", temperature=2.0, weight=0.5),
    dict(nodes="sequence", distance="reverse_kl", temperature=2.0, reduction="node"),
    dict(nodes="sequence", distance="jsd"),
    dict(nodes="sequence", distance="l1", weight=0.1),
    dict(nodes="sequence", distance="l2", weight=0.02, reduction="node"),
]
KINDS = dict(
    transducer="lattice",
    asr_transducer="lattice",
    ctc="frames",
    hybrid="frames",
    attention="tokens",
)


def hypotheses(recipe: Recipe, weights: bool = False) -> dict:
    """A batch in which utterances occur with several texts."""
    batch = batch_of(recipe, HYPOTHESES, weights)
    texts = recipe.batch([2, 3, 6, 0, 7, 5])
    return dict(batch, text=texts["text"], text_lengths=texts["text_lengths"])


def assert_sequences(recipe, kind, nodes, models, weights=(1.0,), **options):
    conf = dict(teacher_weight=list(weights), kd_conf=options.pop("kd_conf", {}))
    changes = options.pop("changes", {})
    student = student_of(recipe, kind, SEQUENCE, models, **conf, **changes)
    plain = plain_of(recipe, kind, **changes)
    stock = [stock_of(model) for model in models]
    batch, expected = hypotheses(recipe), []
    loss, stats, _ = forward(student, batch)
    loss.backward()
    with default():
        for each in SEQUENCE:
            value = by_hand.sequence_loss(
                plain, stock, batch, each, LISTS, nodes, weights, **options
            )
            (each.get("weight", 1.0) * value).backward()
            expected.append(value.item())
    # of CTC and of attention the scores are computed in float32
    is_double = nodes == "lattice" and next(student.parameters()).dtype == torch.float64
    rtol = 1e-7 if is_double else 1e-4
    assert values_of(stats) == pytest.approx(expected, rel=rtol)
    assert min(expected) > 1e-3
    assert_gradients(student, plain, rtol=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences(recipe: Recipe, kind: str):
    assert_sequences(recipe, kind, KINDS[kind], [teacher_of(recipe, kind)])


@pytest.mark.parametrize("kind", ["transducer", "asr_transducer"])
def test_sequences_of_a_dense_student(recipe: Recipe, kind: str):
    models, conf = [teacher_of(recipe, kind)], dict(lean_joint=False)
    assert_sequences(recipe, kind, "lattice", models, kd_conf=conf)


@pytest.mark.parametrize("kind", ["asr_transducer", "ctc", "attention"])
def test_sequences_of_two_teachers(recipe: Recipe, kind: str):
    name = TEACHERS.get(kind, kind)
    models = [teacher_of(recipe, kind), teacher_of(recipe, kind, f"second_{name}")]
    assert_sequences(recipe, kind, KINDS[kind], models, (1.0, 2.0))


@pytest.mark.parametrize(
    "kind, teacher, nodes",
    [
        ("transducer", "ctc", "frames"),
        ("asr_transducer", "hybrid", "frames"),
        ("hybrid", "attention", "tokens"),
        ("ctc", "transducer", "frames"),
    ],
)
def test_sequences_are_scored_by_what_all_models_have(recipe, kind, teacher, nodes):
    model = recipe.teacher(teacher)
    assert_sequences(recipe, kind, nodes, [model])


@pytest.mark.parametrize(
    "kind, teacher",
    [("ctc", "attention"), ("attention", "transducer"), ("attention", "ctc")],
)
def test_sequences_that_no_two_models_score_alike_are_refused(recipe, kind, teacher):
    with pytest.raises(ValueError, match="nodes: 'sequence' is not in every model"):
        student_of(recipe, kind, SEQUENCE, [recipe.teacher(teacher)])


@needs_k2
def test_sequences_of_a_pruned_student(recipe: Recipe):
    """log P(labels) of its band."""
    arguments = dict(prune_range=3, loss_type="regular")
    changes = dict(model_conf=dict(k2_pruned_loss_args=arguments))
    plain = plain_of(recipe, "pruned", **changes)
    assert_sequences(
        recipe,
        "pruned",
        "lattice",
        [teacher_of(recipe, "pruned")],
        changes=changes,
        band=lambda *utterance: own_band(plain, *utterance, **arguments),
    )


def test_sequences_are_not_weighted_twice(recipe: Recipe):
    """`kd_weight` weights the losses of single entries, not those of lists."""
    losses = [dict(nodes="sequence"), dict(nodes="path")]
    student = student_of(recipe, "asr_transducer", losses, weights=True)
    weighted, plain = (
        values_of(forward(student, hypotheses(recipe, weights))[1])
        for weights in (True, False)
    )
    assert weighted[0] == pytest.approx(plain[0], rel=1e-12)
    assert weighted[1] != pytest.approx(plain[1], rel=1e-2)


# ------------------------------------------------------------------ lean and dense

EVERYTHING = [*MIXED, dict(nodes="frames"), dict(nodes="sequence", distance="l1")]


def step(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, dict]:
    torch.manual_seed(1)
    loss, stats, _ = forward(model, batch)
    loss.backward()
    return loss, stats


@pytest.mark.parametrize("weighted", [False, True], ids=["", "kd_weight"])
@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_lean_and_dense_students_learn_alike(recipe: Recipe, kind, weighted):
    conf, steps = dict(hard_weight=0.7), []
    batch = batch_of(recipe, (0, 1, 2), weights=weighted)
    for lean in (True, False):
        conf["lean_joint"] = lean
        student = student_of(recipe, kind, EVERYTHING, kd_conf=conf)
        assert isinstance(student.joint_network, LeanJointNetwork) == lean
        steps.append((student, *step(student, batch)))
    (lean, loss, stats), (dense, dense_loss, dense_stats) = steps
    # ESPnet computes some parts of its own losses in float32
    rtol = 1e-4 if kind == "asr_transducer" else 1e-6
    assert float(loss) == pytest.approx(float(dense_loss), rel=rtol)
    assert stats.keys() == dense_stats.keys()
    for name, value in dense_stats.items():
        if value is None:
            assert stats[name] is None
        else:
            assert float(stats[name]) == pytest.approx(float(value), rel=rtol), name
    assert_gradients(lean, dense, rtol=10 * rtol)


@needs_k2
@pytest.mark.parametrize("prune_range", [2, 4])
@pytest.mark.parametrize("topology", ["regular", "modified"])
def test_a_lean_pruned_loss_is_the_stock_one(recipe, topology, prune_range):
    """Value and gradient, during the warm-up and after it."""
    arguments = dict(prune_range=prune_range, loss_type=topology, lm_scale=0.25)
    changes = dict(
        model_conf=dict(k2_pruned_loss_args=arguments),
        scheduler_conf=dict(warmup_steps=3),
    )
    conf = dict(lean_joint=True, true_lengths=False)
    lean = build(recipe, "pruned", kd_conf=conf, **changes)
    stock = build(recipe, "pruned", stock=True, **changes)
    assert isinstance(lean.joint_network, LeanJointNetwork)
    assert type(stock.joint_network) is not LeanJointNetwork
    for _ in range(4):
        losses = []
        for model in (lean, stock):
            model.zero_grad()
            loss, stats, _ = model(**recipe.batch())
            loss.backward()
            losses.append(float(stats["loss_transducer"]))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert_gradients(lean, stock, rtol=1e-4)


@needs_k2
def test_a_pruned_loss_that_only_k2_has_stays_dense(recipe: Recipe):
    arguments = dict(prune_range=3, loss_type="constrained")
    changes = dict(model_conf=dict(k2_pruned_loss_args=arguments))
    plain = plain_of(recipe, "pruned", **changes)
    student = assert_by_hand(
        recipe,
        "pruned",
        MIXED,
        batch_of(recipe, (0, 2)),
        changes=changes,
        band=lambda *utterance: own_band(plain, *utterance, **arguments),
    )
    assert not isinstance(student.joint_network, LeanJointNetwork)


# ------------------------------------------------------------------------ tolerance


@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_a_tolerance_leaves_out_nodes_and_trains(recipe: Recipe, kind: str):
    losses = [dict(nodes="lattice", **COLLAPSED, **OCCUPANCY)]
    batch = batch_of(recipe)
    models = {
        tolerance: student_of(
            recipe, kind, losses, kd_conf=dict(tolerance=tolerance, hard_weight=1.0)
        )
        for tolerance in (0.0, 0.02)
    }
    values = [float(step(model, batch)[0]) for model in models.values()]
    assert values[0] == values[1]
    exact, near = (gradients_of(model) for model in models.values())
    weight = "joint_network.lin_out.weight"
    difference = (exact[weight] - near[weight]).norm() / exact[weight].norm()
    assert 0 < difference < 0.05
    student = models[0.02]
    optimizer, trained = torch.optim.Adam(student.parameters(), lr=0.01), []
    for _ in range(8):
        trained.append(float(step(student, batch)[0]))
        optimizer.step()
        optimizer.zero_grad()
    assert trained[-1] < 0.9 * trained[0]


# ----------------------------------------------------------------------- validation


@pytest.mark.parametrize("kind, lean", PRUNED_TOO)
def test_validation(recipe: Recipe, kind: str, lean: bool):
    """The student's own loss is the loss; the KD losses are those of training."""
    losses = [*cells(), *SEQUENCE, dict(nodes="frames")]
    losses.append(dict(nodes="path", paths="sample", num_paths=2))
    student = student_of(recipe, kind, losses, kd_conf=dict(lean_joint=lean))
    plain, batch = plain_of(recipe, kind), batch_of(recipe, (1,))
    _, trained = step(student, batch)
    student.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        loss, stats, _ = forward(student, batch)
        expected, _, _ = forward(plain, batch)  # nothing in it depends on the mode
    assert not loss.requires_grad
    assert float(loss) == float(stats["loss"]) == float(stats["loss_hard"])
    if kind != "pruned":  # its warm-up has advanced
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert values_of(stats) == pytest.approx(values_of(trained), rel=1e-6)
    assert set(trained) == set(stats)


@pytest.mark.parametrize("kind", ["hybrid", "ctc", "attention"])
def test_validation_of_sequences(recipe: Recipe, kind: str):
    student = student_of(recipe, kind, SEQUENCE)
    batch = hypotheses(recipe)
    _, trained = step(student, batch)
    with torch.no_grad():
        _, stats, _ = forward(student.eval(), batch)
    assert values_of(stats) == pytest.approx(values_of(trained), rel=1e-9)


# --------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The most elements that the memory of any result of any operation holds."""

    def __init__(self, apart_from: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.elements, self.apart_from = 0, apart_from

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_flatten(result)[0]:
            if isinstance(one, torch.Tensor) and one.shape != self.apart_from:
                size = one.storage().nbytes() // one.element_size()
                self.elements = max(self.elements, size)
        return result


@pytest.mark.parametrize("kind", TRANSDUCERS)
def test_no_tensor_of_all_logits(recipe: Recipe, kind: str, monkeypatch):
    """In a step of a lean student with its teacher, forward and backward."""

    monkeypatch.setitem(reading.CHUNK, "cpu", 2**15)  # long audio would be slow
    names = ["<blank>", "<unk>", *(f"t{n}" for n in range(397)), "<sos/eos>"]
    teacher, changes = TEACHERS.get(kind, kind), dict(token_list=names)
    model = recipe.teacher(teacher, f"{teacher}_of_many_tokens", **changes)
    batch = dict(
        speech=torch.randn(2, 12800),
        speech_lengths=torch.tensor([12800, 12800]),
        text=torch.randint(2, 399, (2, 15)),
        text_lengths=torch.tensor([15, 15]),
    )
    frames, everything = 39, 2 * 39 * 16 * 400
    # k2's simple loss (get_rnnt_logprobs_smoothed) reads the encoder's scores of the
    # labels from a view (B, U, T, V), whose gradient it writes out; not our code.
    of_k2 = (2, 15, frames, 400) if kind == "pruned" else ()
    losses = [*MIXED, dict(nodes="sequence", distance="l2")]
    largest = {}
    for lean in (True, False):
        conf = dict(losses=losses, lean_joint=lean)
        options = dict(kd_conf=conf, **changes, **teachers(model))
        student = recipe.build(kind, **options).train()
        with Largest(of_k2) as seen:
            loss, _, _ = student(**batch)
            loss.backward()
        largest[lean] = seen.elements
    assert largest[True] < everything / 4
    if kind != "pruned":
        assert largest[False] >= everything  # the mode sees existing tensors


# Outputs that hold a batch's graph by a cycle would live until the next collection.
@pytest.mark.parametrize(
    "kind, lean", [*PRUNED_TOO, ("hybrid", True), ("attention", True)]
)
def test_nothing_of_a_batch_outlives_its_step(recipe: Recipe, kind, lean, monkeypatch):
    nodes = dict(hybrid=["frames", "tokens"], attention=["tokens"])
    losses = [dict(nodes=each) for each in nodes.get(kind, ())]
    losses += [dict(nodes="sequence", distance="l2")]
    losses += [] if kind in nodes else [*MIXED, dict(nodes="frames")]
    student = student_of(recipe, kind, losses, kd_conf=dict(lean_joint=lean))
    kept, compute = [], BatchKD.losses

    def watched(batch, outputs):
        result = compute(batch, outputs)
        tensors = [x.logits for x in (outputs.frames, outputs.tokens) if x is not None]
        if outputs.lattice is not None:
            logits = outputs.lattice.logits
            is_dense = isinstance(logits, torch.Tensor)
            tensors.append(logits if is_dense else logits.encoder)
        tensors += [encoded for encoded, _ in batch.signals.encoded]
        if outputs.lattice is not None:
            tensors.append(batch.reading.common.teacher.occupancies)
        held = [batch, batch.signals, batch.reading, outputs, *tensors]
        kept.extend(weakref.ref(each) for each in held)
        return result

    monkeypatch.setattr(BatchKD, "losses", watched)
    gc.collect()
    gc.disable()
    try:
        for mode in (student.train(), student.eval()):
            loss, _, _ = forward(mode, batch_of(recipe))
            loss.backward()
            del loss
            assert len(kept) >= 4
            assert [ref() for ref in kept if ref() is not None] == []
            kept.clear()
    finally:
        gc.enable()
