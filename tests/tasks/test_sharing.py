"""The hypotheses of an utterance share an encoder pass, and nothing else changes."""

import pytest
import torch
from espnet2.samplers.build_batch_sampler import build_batch_sampler

from espnet_kd.distill.sharing import Rows, distinct_rows
from espnet_kd.student import model as student_model
from tests.tasks.recipe import FILES, Recipe, teachers, train_mode

INDICES = [1, 1, 4, 0, 0, 0]
HIDDEN = dict(student="encoder.encoders.0", teacher="encoder.encoders.0")
CASES = {
    "hybrid": (
        "hybrid",
        dict(
            losses=[dict(nodes=["frames", "tokens"], classes="topk", k=3)],
            hidden=[HIDDEN],
        ),
        {},
    ),
    "intermediate CTC": (
        "ctc",
        dict(losses=[dict(nodes="frames")]),
        dict(
            encoder_conf=dict(num_blocks=2, interctc_layer_idx=[1]),
            model_conf=dict(interctc_weight=0.3),
        ),
    ),
    "asr_transducer": (
        "asr_transducer",
        dict(losses=[dict(nodes=["path", "frames"])]),
        {},
    ),
}


def not_shared(speech, lengths) -> Rows:
    rows = torch.arange(len(speech))
    return Rows(rows, rows)


def hypotheses(recipe: Recipe, weights: bool = False) -> dict:
    """A batch in which utterances occur with several texts."""
    batch = recipe.batch(INDICES, weights=weights)
    batch["text"] = batch["text"].flip(0)  # the longest text is among the first
    batch["text_lengths"] = batch["text_lengths"].flip(0)
    return batch


def count_rows(model: torch.nn.Module, seen: list) -> None:
    def hook(module, inputs, output):
        seen.append(len(inputs[0]))

    model.encoder.register_forward_hook(hook)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_without_sharing(
    recipe: Recipe, case: str, monkeypatch
):
    kind, conf, changes = CASES[case]
    name = "asr_transducer" if kind == "asr_transducer" else "hybrid"
    options = dict(kd_conf=conf, **teachers(recipe.teacher(name)), **changes)
    batch, results = hypotheses(recipe, weights=True), []
    for function, rows in ((distinct_rows, 3), (not_shared, 6)):
        monkeypatch.setattr(student_model, "distinct_rows", function)
        student = train_mode(recipe.build(kind, seed=5, weights=True, **options))
        (teacher,), seen = student.distillation.source.ensemble.models, []
        count_rows(student, seen)
        count_rows(teacher, seen)
        loss, stats, _ = student(**batch)
        assert seen == [rows, rows]
        loss.backward()
        gradients = {n: p.grad for n, p in student.named_parameters()}
        results.append((loss.item(), stats, gradients))
    (loss, stats, gradients), (plain, plain_stats, plain_gradients) = results
    assert loss == pytest.approx(plain, rel=1e-5)
    for name, value in plain_stats.items():
        if value is not None:
            assert float(stats[name]) == pytest.approx(float(value), rel=1e-4), name
    for name, value in plain_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-5)


def test_audio_that_was_augmented_is_not_shared(recipe: Recipe):
    student, seen = recipe.build("hybrid", weights=True), []
    count_rows(student, seen)
    batch = hypotheses(recipe)
    student(**batch)
    batch["speech"][1] += 0.01 * torch.randn(batch["speech"].size(1))
    student(**batch)
    assert seen == [3, 4]


def test_training_on_several_hypotheses(tmp_path, monkeypatch):
    """A KD set with two more targets for some utterances; they are in one batch."""
    recipe = Recipe(tmp_path)
    for name in FILES:
        rows = []
        for line in (recipe.data / name).read_text().splitlines():
            key, value = line.split(" ", 1)
            copies = 3 if key in ("utt2", "utt5", "utt6") else 1
            rows += [f"{key}-kd{n} {value}" if n else line for n in range(copies)]
        (recipe.data / name).write_text("\n".join(rows) + "\n")
    found = []

    def watched(speech, lengths):
        rows = distinct_rows(speech, lengths)
        found.append((len(rows.first), len(rows.index)))
        return rows

    conf = dict(losses=[dict(nodes="frames")])
    options = dict(kd_conf=conf, batch_size=7, **teachers(recipe.teacher("hybrid")))
    folders = []
    for number, function in enumerate((watched, not_shared)):
        monkeypatch.setattr(student_model, "distinct_rows", function)
        folders.append(recipe.train("hybrid", f"run{number}", weights=True, **options))
    assert (5, 7) in found and (3, 7) in found  # of 14 entries, 8 utterances
    shared, plain = (torch.load(folder / "1epoch.pth") for folder in folders)
    for name, value in plain.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["unsorted", "sorted", "folded", "length", "numel"])
def test_hypotheses_are_adjacent_in_batches(tmp_path, kind: str):
    """ESPnet sorts by length and keeps the order of the file among equals."""
    lengths = {n: 8000 + 900 * (n % 3) for n in range(8)}  # several of each length
    keys = [f"utt{n}{end}" for n in range(8) for end in ("", "-kd2", "-kd3")]
    for name, shape in (("speech_shape", "{0}"), ("text_shape", "{1},9")):
        lines = [f"{key} {shape.format(lengths[int(key[3])], 5)}\n" for key in keys]
        (tmp_path / name).write_text("".join(lines))
    sampler = build_batch_sampler(
        type=kind,
        batch_size=5,
        batch_bins=60000,
        shape_files=[str(tmp_path / name) for name in ("speech_shape", "text_shape")],
        fold_lengths=[80000, 150],
    )
    batches = [[key[:4] for key in batch] for batch in sampler]
    together = 0
    for batch in batches:
        changes = [a != b for a, b in zip(batch, batch[1:])]
        assert sum(changes) == len(set(batch)) - 1  # no group is interrupted
        together += sum(batch.count(utterance) == 3 for utterance in set(batch))
    assert together >= 3 and sum(map(len, batches)) == len(keys)
