"""WER, expected WER and storage of n-best lists on cuts."""

from __future__ import annotations

import json

import pytest
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from espnet_kd.targets.fingerprint import differences, require_same
from espnet_kd.targets.hypotheses import (
    Hypothesis,
    expected_wer,
    hypotheses_of,
    posteriors,
    read_cuts,
    reference_of,
    wer,
    with_hypotheses,
)


def make_cut(utt_id="u", text="a b", supervisions=1):
    recording = Recording(
        utt_id, [AudioSource("file", [0], f"{utt_id}.wav")], 8000, 8000, 1.0
    )
    return MonoCut(
        utt_id,
        0.0,
        1.0,
        0,
        recording=recording,
        supervisions=[
            SupervisionSegment(f"{utt_id}{n or ''}", utt_id, 0.0, 1.0, text=text)
            for n in range(supervisions)
        ],
    )


@pytest.mark.parametrize(
    "reference, text, expected",
    [
        ("a b c d", "a b c d", 0.0),
        ("a b c d", "a x c", 0.5),  # one substitution, one deletion
        ("a b", "a b c d e", 1.5),  # insertions alone: above 1
        ("a", "", 1.0),
        ("", "", 0.0),
        ("", "a b c", 1.0),
    ],
)
def test_wer(reference, text, expected):
    assert wer(reference, text) == pytest.approx(expected)


def test_posteriors():
    assert posteriors([-1000.0, -1000.0]) == pytest.approx([0.5, 0.5])
    assert posteriors([]) == []


def test_expected_wer_by_hand():
    texts = ["a b", "a c", "a"]
    shares = [0.5, 0.3, 0.2]
    found = expected_wer(
        [Hypothesis(text, [], 0.0, None, p, None) for text, p in zip(texts, shares)]
    )
    #          against "a b"   "a c"       "a"
    assert found == pytest.approx(
        [
            0.3 * 1 / 2 + 0.2 * 1 / 1,
            0.5 * 1 / 2 + 0.2 * 1 / 1,
            0.5 * 1 / 2 + 0.3 * 1 / 2,
        ]
    )
    assert expected_wer([Hypothesis("a", [], 0.0, None, 1.0, None)]) == [0.0]
    assert expected_wer([]) == []


def test_storage_on_cuts(tmp_path):
    nbest = [
        Hypothesis("a ü", [2, 3], -1.5, -0.5, 0.75, 0.5),
        Hypothesis("", [], -2.0, None, 0.25, None),
    ]
    labelled = with_hypotheses(make_cut("one"), nbest)
    bare = with_hypotheses(make_cut("two", supervisions=0), [])
    CutSet([labelled, bare]).to_file(tmp_path / "cuts.jsonl.gz")
    one, two = read_cuts(tmp_path / "cuts.jsonl.gz")
    assert hypotheses_of(one) == nbest and reference_of(one) == "a b"
    assert hypotheses_of(two) == [] and reference_of(two) is None
    assert two.supervisions[0].id == "two"


def test_cuts_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cut u: its supervision has no `hypotheses`"):
        hypotheses_of(make_cut())
    with pytest.raises(ValueError, match="trim_to_supervisions"):
        with_hypotheses(make_cut(supervisions=2), [])
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_cuts(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="jsonl"):
        read_cuts(tmp_path / "cuts.json")


def test_differences_name_nested_fields():
    old = {"a": 1, "inference": {"beam_size": 4, "nbest": 2}}
    new = {"a": 1, "inference": {"beam_size": 5, "nbest": 2}, "lm": "x"}
    assert list(differences(old, new)) == [
        ("inference.beam_size", 4, 5),
        ("lm", None, "x"),
    ]
    with pytest.raises(ValueError, match="shard: inference.beam_size: 4 there, 5 now"):
        require_same(old, new, "shard", "Remove it.")
    require_same(json.loads(json.dumps({"a": (1, 2)})), {"a": (1, 2)}, "shard", "")
