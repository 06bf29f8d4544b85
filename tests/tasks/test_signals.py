"""KD losses query only `espnet_kd.distill.signals`: other sources train too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_kd.config.kd_conf import parse_kd_conf
from espnet_kd.distill.signals import (
    Batch,
    EnsembleSource,
    KnownLattice,
    KnownPath,
    Signals,
    Source,
    TeacherFacts,
    source_of,
)
from espnet_kd.lattice import Lattices, best_path
from espnet_kd.losses import OnlineSteps, StoredPath
from espnet_kd.losses.teachers import PathTeacher
from espnet_kd.models.lengths import use_true_lengths
from espnet_kd.student.make import make_student
from tests.tasks.recipe import RATE, TOKENS, Recipe, teachers, train_mode

FRAMES_PER_SECOND = RATE / 80 / 4  # hop length, subsampling


# ------------------------------------------------------- posteriors from a dictionary


class DictionarySource(Source):
    """Contains the CTC posteriors (T, V) of some utterances, and nothing else."""

    def __init__(self, log_probs: dict[str, Tensor], rate: float = FRAMES_PER_SECOND):
        self.log_probs = log_probs
        self.rate = rate
        self.teachers = [TeacherFacts("a dictionary", frozenset({"frames"}), None)]

    def frame_rates(self, sampling_rate: int) -> dict[str, float]:
        return {"a dictionary": self.rate}

    def signals(self, batch: Batch) -> Signals:
        return DictionarySignals([self.log_probs[u] for u in batch.utterances])


class DictionarySignals(Signals):
    def __init__(self, log_probs: list[Tensor]) -> None:
        self.log_probs = log_probs

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(each) for each in self.log_probs])

    def frames(self) -> OnlineSteps:
        return OnlineSteps(pad_sequence(self.log_probs, batch_first=True))


def student_of(recipe: Recipe, kind: str, source: Source, *losses: dict, **conf):
    model = recipe.build(kind, seed=5, stock=True)
    use_true_lengths(model)  # as the task does
    conf = parse_kd_conf(dict(losses=list(losses), **conf))
    return make_student(model, conf, source, RATE)


def batch_of(recipe: Recipe) -> dict:
    batch = recipe.batch()
    return dict(batch, utt_id=[f"utt{n}" for n in range(len(batch["text"]))])


@pytest.fixture(scope="module")
def log_probs(recipe: Recipe) -> dict[str, Tensor]:
    """Noisy distributions, one frame more or less than the student has."""
    model = recipe.build("hybrid", seed=5, stock=True)
    batch, generator = recipe.batch(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        _, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    logits = [
        3 * torch.randn(len(TOKENS), generator=generator)
        + torch.randn(int(n) + extra, len(TOKENS), generator=generator)
        for n, extra in zip(lengths, (1, 0, -1, 0))
    ]
    return {f"utt{n}": x.log_softmax(-1) for n, x in enumerate(logits)}


def test_a_dictionary_gives_the_loss_of_the_formula(recipe: Recipe, log_probs):
    student = student_of(
        recipe, "hybrid", DictionarySource(log_probs), dict(nodes="frames")
    )
    batch = batch_of(recipe)
    _, stats, _ = student(**batch)
    with torch.no_grad():
        encoded, lengths = student.encode(batch["speech"], batch["speech_lengths"])
        log_p = student.ctc.ctc_lo(encoded).double().log_softmax(-1)
    expected = 0.0
    for b, log_q in enumerate(log_probs.values()):
        for t in range(min(int(lengths[b]), len(log_q))):
            for k in range(len(TOKENS)):
                q = log_q[t, k].double()
                expected += float(q.exp() * (q - log_p[b, t, k])) / len(log_probs)
    assert float(stats["loss_kd_frames"]) == pytest.approx(expected, rel=1e-5)


def test_a_dictionary_trains_a_student(recipe: Recipe, log_probs):
    losses = (dict(nodes="frames"), dict(nodes="frames", classes="topk", k=3))
    source = DictionarySource(log_probs)
    student = student_of(recipe, "hybrid", source, *losses, hard_weight=0.0)
    optimizer = torch.optim.Adam(train_mode(student).parameters(), lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, stats, _ = student(**batch_of(recipe))
        loss.backward()
        optimizer.step()
        values.append([float(stats[f"loss_kd_frames_{c}"]) for c in ("full", "topk")])
    for first, last in zip(*(values[0], values[-1])):
        assert last < 0.7 * first


def test_what_a_source_does_not_know_is_refused_before_training(
    recipe: Recipe, log_probs
):
    with pytest.raises(ValueError, match="'tokens' is not in every .* a dictionary"):
        student_of(recipe, "hybrid", DictionarySource(log_probs), dict(nodes="tokens"))
    with pytest.raises(ValueError, match="hidden.* has no hidden layers"):
        pair = dict(student="encoder.encoders.0", teacher="encoder.encoders.0")
        student_of(recipe, "hybrid", DictionarySource(log_probs), hidden=[pair])
    with pytest.raises(ValueError, match="only integer ratios can be matched"):
        student_of(
            recipe, "hybrid", DictionarySource(log_probs, 17.0), dict(nodes="frames")
        )


class Silent(Signals):
    """Knows nothing, or only how many frames there are."""

    def __init__(self, lengths: Tensor | None) -> None:
        self.frames_of_teacher = lengths

    @property
    def lengths(self) -> Tensor | None:
        return self.frames_of_teacher


class SilentSource(DictionarySource):
    """Lists all kinds of nodes; its signals are `answers`."""

    def __init__(self, answers: Signals | None) -> None:
        super().__init__({})
        nodes = "frames tokens lattice band path sequence".split()
        self.teachers = [TeacherFacts("a silent one", frozenset(nodes), None)]
        self.answers = answers

    def signals(self, batch: Batch) -> Signals | None:
        return self.answers

    def watch(self, teacher: int, layer: str, sampling_rate: int) -> int:
        return 12


LENGTHS = torch.tensor([12, 23, 14, 9])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["nothing", "lengths"])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(
    "nodes", ["frames", "tokens", "lattice", "band", "path", "sequence", "hidden"]
)
def test_a_source_without_the_nodes_that_it_lists_is_named(
    recipe: Recipe, nodes, lean, lengths
):
    is_hybrid = nodes in ("frames", "tokens", "hidden")
    if is_hybrid and not lean:
        pytest.skip("only a transducer has a joint network")
    layer, conf = "encoder.encoders.0", {}
    if nodes == "hidden":
        conf["hidden"] = [dict(student=layer, teacher=layer)]
    else:
        conf["losses"] = [dict(nodes=nodes)]
    model = recipe.build("hybrid" if is_hybrid else "asr_transducer", stock=True)
    conf = parse_kd_conf(dict(conf, lean_joint=None if is_hybrid else lean))
    student = make_student(model, conf, SilentSource(Silent(lengths)), RATE)
    with pytest.raises(ValueError, match="not known of the teacher|is known of both"):
        student(**batch_of(recipe))


def test_batches_without_signals_are_for_evaluation_alone(recipe: Recipe):
    source = SilentSource(None)
    losses = (dict(nodes="lattice"), dict(nodes="frames"))
    student = student_of(recipe, "asr_transducer", source, *losses)
    loss, stats, _ = student.eval()(**batch_of(recipe))
    assert loss.isfinite()
    for name in ("loss_kd_lattice", "loss_kd_frames"):
        assert math.isnan(float(stats[name]))
    with pytest.raises(ValueError, match="nothing is known .*'utt0', 'utt1'"):
        student.train()(**batch_of(recipe))


def test_a_source_refuses_what_it_cannot_answer_before_training(recipe, log_probs):
    class AtOneTemperature(DictionarySource):
        def check(self, losses, rates):
            assert rates.student == 1
            if any(loss.temperature != 1 for loss in losses):
                raise ValueError("temperature: stored at 1")

    source = AtOneTemperature(log_probs)
    student_of(recipe, "hybrid", source, dict(nodes="frames"))
    with pytest.raises(ValueError, match="temperature: stored at 1"):
        student_of(recipe, "hybrid", source, dict(nodes="frames", temperature=2.0))


def test_single_hypotheses_are_reported_once_per_training(recipe: Recipe, caplog):
    options = dict(kd_conf=dict(losses=[dict(nodes="sequence")]))
    options.update(teachers(recipe.teacher("ctc")))
    for _ in range(2):
        student = recipe.build("ctc", **options).train()
        caplog.clear()
        for _ in range(2):
            student(**batch_of(recipe))
        assert caplog.text.count("no two hypotheses in this batch share") == 1


# ------------------------------------------------------------- a path and its classes


class PathSource(Source):
    """Stores an ensemble's best path and its top-k classes there, and no more."""

    def __init__(self, online: EnsembleSource, k: int) -> None:
        self.online = online
        self.k = k
        self.teachers = [
            each._replace(nodes=frozenset({"path"})) for each in online.teachers
        ]
        self.frame_rates = online.frame_rates

    def signals(self, batch: Batch) -> Signals:
        return PathSignals(self.online.signals(batch), self.k)


class PathSignals(Signals):
    def __init__(self, online: Signals, k: int) -> None:
        self.online = online
        self.k = k

    @property
    def lengths(self) -> Tensor:
        return self.online.lengths

    def path(self, labels: Tensor, label_lengths: Tensor) -> KnownPath:
        (logits,) = self.online.lattice(labels, label_lengths).teacher.logits
        lengths = (self.lengths, label_lengths)
        path, path_lengths, _ = best_path(logits, labels, *lengths)
        b = torch.arange(len(path)).unsqueeze(1)
        t, u = path.clamp(min=0).unbind(-1)
        t, u = t.clamp(max=logits.shape[1] - 1), u.clamp(max=logits.shape[2] - 1)
        weight, bias = logits.weight, logits.bias
        joint = torch.tanh(logits.encoder[b, t] + logits.decoder[b, u])
        stored = (joint @ weight.T + bias).log_softmax(-1).topk(self.k)
        stored = StoredPath(stored.values, stored.indices)
        teacher = PathTeacher(stored, path, path_lengths, path.device)
        return KnownPath(path, path_lengths, teacher)


def test_a_stored_path_gives_the_loss_of_the_ensemble(recipe: Recipe):
    """With all classes: blank is always among them."""
    loss = dict(nodes="path", classes="topk", k=len(TOKENS))
    options = dict(kd_conf=dict(losses=[loss]))
    options.update(teachers(recipe.teacher("asr_transducer")))
    online = recipe.build("asr_transducer", seed=5, **options)
    source = PathSource(online.distillation.source, len(TOKENS))
    stored = student_of(recipe, "asr_transducer", source, loss)
    results = []
    for student in (online, stored):
        value, stats, _ = train_mode(student)(**batch_of(recipe))
        value.backward()
        gradients = {n: p.grad for n, p in student.named_parameters()}
        results.append((float(stats["loss_kd_path"]), gradients))
    (expected, gradients), (value, others) = results
    assert value == pytest.approx(expected, rel=1e-5) and value > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)


def test_options_name_an_ensemble(recipe: Recipe):
    model = recipe.teacher("hybrid")
    options = recipe.options("hybrid", "named", **teachers(model, model))
    args = recipe.task("hybrid").get_parser().parse_args(options)
    source = source_of(args)
    assert [each.name for each in source.teachers] == [
        model.config,
        f"{model.config} ({model.checkpoint})",
    ]
    assert {"frames", "tokens", "sequence"} == source.teachers[0].nodes


# --------------------------------------------------------------- a band of the lattice


class BandSource(Source):
    """An ensemble of whose lattices only a band is known."""

    def __init__(self, online: EnsembleSource, width: int) -> None:
        self.online = online
        self.width = width
        self.teachers = online.teachers
        self.frame_rates = online.frame_rates

    def signals(self, batch: Batch) -> Signals:
        return BandSignals(self.online.signals(batch), self.width)


class BandSignals(Signals):
    def __init__(self, online: Signals, width: int) -> None:
        self.online = online
        self.width = width

    @property
    def lengths(self) -> Tensor:
        return self.online.lengths

    def lattice(self, labels: Tensor, label_lengths: Tensor) -> KnownLattice:
        teacher = self.online.lattice(labels, label_lengths).teacher
        lengths = (self.lengths, label_lengths)
        read = Lattices.read(teacher.logits[0], labels, *lengths)
        return KnownLattice(teacher, read.band(self.width))


def test_a_lattice_in_a_band_is_compared_in_that_band(recipe: Recipe):
    options = dict(kd_conf=dict(losses=[dict(nodes="band", width=2)]))
    options.update(teachers(recipe.teacher("asr_transducer")))
    online = recipe.build("asr_transducer", seed=5, **options)
    source = BandSource(online.distillation.source, 2)
    stored = student_of(recipe, "asr_transducer", source, dict(nodes="lattice"))
    _, expected, _ = train_mode(online)(**batch_of(recipe))
    _, stats, _ = train_mode(stored)(**batch_of(recipe))
    expected = float(expected["loss_kd_band"])
    assert float(stats["loss_kd_lattice"]) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3
