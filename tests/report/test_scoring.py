"""Error counts against alignments done by hand and a plain edit distance."""

import random

import numpy as np
import pytest

from espnet_kd.report.sclite import find_sclite
from espnet_kd.report.scoring import mean_of_runs, read_text, score


def edit_distance(ref: list[str], hyp: list[str]) -> int:
    """The textbook recursion, row by row."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        above, row = row, [i]
        for j, h in enumerate(hyp, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h)))
    return row[-1]


def random_texts(utterances: int = 200) -> tuple[dict[str, str], dict[str, str]]:
    rng = random.Random(7)
    words = "a b c d (x) {y / @ - <unk> A é".split()
    refs, hyps = {}, {}
    for index in range(utterances):
        ref = rng.choices(words, k=rng.randint(0, 12))
        hyp = [w if rng.random() < 0.8 else rng.choice(words) for w in ref]
        hyp = [w for w in hyp if rng.random() < 0.9]
        refs[f"spk-{index}_u"] = " ".join(ref)
        hyps[f"spk-{index}_u"] = " ".join(hyp + rng.choices(words, k=index % 2))
    return refs, hyps


def test_counts_done_by_hand():
    refs = {"a": "one two three four", "b": "five six", "c": "seven", "d": "eight"}
    hyps = {"a": "one too four", "b": "five six six", "c": "", "d": "eight"}
    scored = score(refs, hyps)
    assert scored.ids == ("a", "b", "c", "d")
    # a: two -> too, three lost; b: one six too many; c: lost; columns S, D, I, N
    assert scored.counts.tolist() == [
        [1, 1, 0, 4],
        [0, 0, 1, 2],
        [0, 1, 0, 1],
        [0, 0, 0, 1],
    ]
    assert scored.rate == 4 / 8
    assert scored.errors.tolist() == [2, 1, 1, 0]


def test_rate_beyond_one_hundred_percent():
    assert score({"a": "x"}, {"a": "y z w"}).rate == 3.0


def test_characters_count_the_blank_between_words():
    scored = score({"a": "no  go"}, {"a": "nogo"}, unit="char")
    assert scored.totals.tolist() == [0, 1, 0, 5]


@pytest.mark.parametrize("unit", ["word", "char"])
def test_errors_are_the_edit_distance(unit):
    refs, hyps = random_texts()
    scored = score(refs, hyps, unit)
    for index, utterance in enumerate(scored.ids):
        ref, hyp = refs[utterance], hyps[utterance]
        if unit == "word":
            ref, hyp = ref.split(), hyp.split()
        assert scored.errors[index] == edit_distance(list(ref), list(hyp))
        assert scored.lengths[index] == len(ref)
        deleted, inserted = scored.counts[index, 1:3]
        assert len(hyp) - len(ref) == inserted - deleted


@pytest.mark.skipif(find_sclite() is None, reason="sclite is not installed")
@pytest.mark.parametrize("unit", ["word", "char"])
def test_sclite_gives_the_same_totals(unit):
    refs, hyps = random_texts()
    ours, theirs = score(refs, hyps, unit), score(refs, hyps, unit, "sclite")
    np.testing.assert_array_equal(ours.lengths, theirs.lengths)
    difference = theirs.errors - ours.errors  # its weights 3/3/4 may cost an error more
    assert difference.min() >= 0 and difference.sum() <= 0.01 * ours.errors.sum()


def test_absent_sclite_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("espnet_kd.report.sclite.SCTK_FOLDER", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install_sctk.sh.*kaldialign"):
        score({"a": "x"}, {"a": "x"}, scorer="sclite")


def test_differing_ids_are_refused_and_listed():
    with pytest.raises(ValueError) as refusal:
        score({"a": "x", "b": "y", "c": "z"}, {"b": "y", "d": "w"})
    assert "2 in the reference have no hypothesis: a c" in str(refusal.value)
    assert "1 have a hypothesis but no reference: d" in str(refusal.value)


def test_references_without_a_word_are_refused():
    with pytest.raises(ValueError, match="no words"):
        score({"a": ""}, {"a": "x"})


def test_read_text(tmp_path):
    path = tmp_path / "text"
    path.write_text("a one  two\nb\nc \u00e9t\u00e9\t deux \n", encoding="utf-8")
    assert read_text(path) == {"a": "one two", "b": "", "c": "\u00e9t\u00e9 deux"}


@pytest.mark.parametrize(
    "content, message",
    [
        ("a x\nb y\na z\n", ":3: id a occurs twice"),
        ("", "no utterance"),
        ("a x\n\n", ":2"),
    ],
)
def test_broken_text_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_text(path)


def test_mean_of_runs():
    refs = {"a": "x y", "b": "z"}
    runs = [score(refs, {"a": "x y", "b": "z"}), score(refs, {"a": "x", "b": "w"})]
    mean = mean_of_runs(runs)
    assert mean.counts.tolist() == [[0, 0.5, 0, 2], [0.5, 0, 0, 1]]
    assert mean.rate == pytest.approx(np.mean([run.rate for run in runs]))
    with pytest.raises(ValueError, match="same utterances"):
        mean_of_runs([runs[0], score({"a": "x"}, {"a": "x"})])
