"""Taking turns, and figures computed from the seconds."""

import time

import pytest

from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.export.measure import table, take_turns
from espnet_kd.targets.hypotheses import SearchResult


def test_turns(recipe):
    cuts = list(cuts_from_kaldi(recipe.data))[:3]
    calls = []

    def decoder(name, seconds):
        def decode(samples):
            calls.append((name, len(samples)))
            time.sleep(seconds)
            return [SearchResult(name, [1], 0.0)] if name == "a" else []

        return decode

    passes = take_turns({"a": decoder("a", 0.01), "b": decoder("b", 0.03)}, cuts, 2)
    lengths = [cut.num_samples for cut in cuts]
    assert calls[:2] == [("a", lengths[0]), ("b", lengths[0])]  # warming up
    turns = ["ab", "ba", "ab", "ba", "ab", "ba"]
    expected = [(n, x) for names, x in zip(turns, lengths * 2) for n in names]
    assert calls[2:] == expected
    assert passes["a"].texts == {cut.id: "a" for cut in cuts}
    assert passes["b"].texts == {cut.id: "" for cut in cuts}
    assert all(0.03 <= each for each in passes["a"].seconds)
    assert all(0.09 <= each for each in passes["b"].seconds)
    assert len(passes["a"].seconds) == len(passes["b"].seconds) == 2


@pytest.mark.parametrize("is_measured", [True, False])
def test_table(is_measured):
    record = dict(
        forms={
            "dense": dict(file="m.pth", bytes=4_000_000),
            "2:4": dict(file="m.2to4.pth", bytes=2_250_000),
        }
    )
    if is_measured:
        dense = dict(wer=0.05, rtf=0.01, rtf_to_dense=[1.0, 1.0, 1.0])
        other = dict(wer=0.0512, rtf=0.012, rtf_to_dense=[1.2, 1.1, 1.35])
        record["measured"] = dict(
            data_dir="dump/test",
            utterances=7,
            audio_seconds=12.6,
            repeats=3,
            forms={"dense": dense, "2:4": other},
        )
    rows = [line for line in table(record).splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    end = " 5.12 | 0.0120 | 1.20 | 1.10 - 1.35 |" if is_measured else ""
    assert rows[3] == "| 2:4 | m.2to4.pth | 2.25 | 0.56 |" + end
    assert ("CPUs have no kernel" in table(record)) == is_measured
