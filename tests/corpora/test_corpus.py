"""From Lhotse's manifests of a corpus to data/ folders."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from espnet_kd.corpora.corpus import once, utterances, write_set
from espnet_kd.data.kaldi import cuts_from_kaldi

RATE = 8000
# (id, recording, start s, duration s, speaker) in two talks of 2 s and 1 s.
SEGMENTS = [
    ("bob-2", "talk1", 1.5, 0.5, "bob"),
    ("ann-1", "talk1", 0.25, 1.0, "ann"),
    ("ann-2", "talk2", 0.0, 0.75, "ann"),
]


@pytest.fixture
def manifests(tmp_path: Path) -> tuple[RecordingSet, SupervisionSet]:
    recordings = []
    for name, seconds in (("talk1", 2.0), ("talk2", 1.0)):
        samples = 0.1 * np.random.default_rng(0).standard_normal(int(RATE * seconds))
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
        recordings.append(Recording.from_file(tmp_path / f"{name}.wav"))
    segments = [
        SupervisionSegment(
            id=name,
            recording_id=recording,
            start=start,
            duration=duration,
            speaker=speaker,
            text=f"this is {name}",
        )
        for name, recording, start, duration, speaker in SEGMENTS
    ]
    return (
        RecordingSet.from_recordings(recordings),
        SupervisionSet.from_segments(segments),
    )


def test_an_utterance_for_each_supervision(manifests, tmp_path: Path):
    assert write_set(*manifests, "train", tmp_path / "data", expected=3) == 3
    tables = {
        path.name: path.read_text() for path in (tmp_path / "data/train").iterdir()
    }
    assert tables["text"] == (
        "ann-1 this is ann-1\nann-2 this is ann-2\nbob-2 this is bob-2\n"
    )
    assert tables["segments"] == (
        "ann-1 talk1 0.25 1.25\nann-2 talk2 0 0.75\nbob-2 talk1 1.5 2\n"
    )
    assert tables["utt2spk"] == "ann-1 ann\nann-2 ann\nbob-2 bob\n"
    assert tables["utt2num_samples"] == "ann-1 8000\nann-2 6000\nbob-2 4000\n"
    lengths = {
        cut.id: cut.num_samples for cut in cuts_from_kaldi(tmp_path / "data/train")
    }
    assert lengths == {"ann-1": 8000, "ann-2": 6000, "bob-2": 4000}


def test_manifests_are_lhotse_s(manifests, tmp_path: Path):
    write_set(*manifests, "dev", tmp_path)
    folder = tmp_path / "manifests"
    assert {path.name for path in folder.iterdir()} == {
        "dev_recordings.jsonl.gz",
        "dev_supervisions.jsonl.gz",
    }
    recordings = RecordingSet.from_file(folder / "dev_recordings.jsonl.gz")
    segments = SupervisionSet.from_file(folder / "dev_supervisions.jsonl.gz")
    assert (list(recordings), list(segments)) == tuple(map(list, manifests))


def test_utterances_have_their_part_of_the_audio(manifests):
    cuts = {cut.id: cut for cut in utterances(*manifests)}
    assert {name: (cut.start, cut.duration) for name, cut in cuts.items()} == {
        name: (start, duration) for name, _, start, duration, _ in SEGMENTS
    }
    assert cuts["bob-2"].supervisions[0].text == "this is bob-2"


def test_overlapping_utterances_stay_separate(manifests):
    recordings, segments = manifests
    interruption = SupervisionSegment(
        id="cat-1", recording_id="talk1", start=0.5, duration=0.25, speaker="cat"
    )
    both = SupervisionSet.from_segments([*segments, interruption])
    cuts = {cut.id: cut for cut in utterances(recordings, both)}
    assert set(cuts) == {"bob-2", "ann-1", "ann-2", "cat-1"}
    assert all(len(cut.supervisions) == 1 for cut in cuts.values())


def test_a_wrong_number_of_utterances_writes_nothing(manifests, tmp_path: Path):
    with pytest.raises(
        ValueError, match="train: 3 utterances, the corpus has 4.*false"
    ):
        write_set(*manifests, "train", tmp_path / "data", expected=4)
    assert not (tmp_path / "data").exists()


def test_an_id_without_its_speaker_writes_nothing(manifests, tmp_path: Path):
    recordings, segments = manifests
    other = SupervisionSegment("one", "talk2", 0.0, 0.5, speaker="eve")
    with pytest.raises(ValueError, match="utterance one does not begin .* eve"):
        both = SupervisionSet.from_segments([*segments, other])
        write_set(recordings, both, "train", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = tmp_path / "data"
    runs: list[str] = []

    def fail() -> None:
        raise ValueError("torn")

    once(data, {"parts": ["a"], "folder": Path("x")}, lambda: runs.append("first"))
    once(data, {"folder": Path("x"), "parts": ["a"]}, lambda: runs.append("again"))
    assert runs == ["first"]
    assert "already prepared" in capsys.readouterr().out
    once(data, {"parts": ["b"]}, lambda: runs.append("other options"))
    assert runs == ["first", "other options"]
    with pytest.raises(ValueError, match="torn"):
        once(data, {"parts": ["c"]}, fail)
    for part in ("b", "c"):  # neither exists now
        once(data, {"parts": [part]}, partial(runs.append, part))
    assert runs == ["first", "other options", "b", "c"]
