"""Each fault of a data set is found, with the utterance, the file and a remedy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut
from lhotse.utils import fastcopy

from espnet_kd.bin import cuts_to_kaldi as cuts_to_kaldi_command
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import listing, validate_cuts, validate_kaldi

RATE = 8000
TABLES = {
    "wav.scp": "a-1 wav/1.wav\na-2 wav/2.wav\nb-1 wav/3.wav\n",
    "text": "a-1 one\na-2 two\nb-1 three\n",
    "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
    "utt2num_samples": "a-1 8000\na-2 16000\nb-1 24000\n",
    "utt2dur": "a-1 1.0\na-2 2.0\nb-1 3.0\n",
}
SEGMENTED = {
    "wav.scp": "rec wav/3.wav\n",
    "text": "a-1 one\na-2 two\n",
    "utt2spk": "a-1 a\na-2 a\n",
    "segments": "a-1 rec 0.5 1.25\na-2 rec 1.25 -1\n",
    "utt2num_samples": "a-1 6000\na-2 14000\n",
}


def make(tables: dict[str, str]) -> Path:
    Path("wav").mkdir(exist_ok=True)
    for seconds in (1, 2, 3):
        samples = np.zeros(seconds * RATE, dtype=np.int16)
        soundfile.write(f"wav/{seconds}.wav", samples, RATE)
    folder = Path("data")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in tables.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("tables", [TABLES, SEGMENTED])
def test_good_data_has_no_problem(tables: dict[str, str]) -> None:
    assert validate_kaldi(make(tables)) == []
    assert validate_cuts(cuts_from_kaldi("data")) == []
    unlabelled = {name: text for name, text in tables.items() if name != "text"}
    assert validate_kaldi(make(unlabelled)) == []
    assert validate_cuts(cuts_from_kaldi("data")) == []


@pytest.mark.parametrize(
    ("table", "content", "utt_id", "reason"),
    [
        ("text", "a-1 one\na-2\nb-1 three\n", "a-2", "empty text"),
        ("text", "a-1 one\nb-1 three\n", "a-2", "in wav.scp but not here"),
        ("text", TABLES["text"] + "c-1 four\n", "c-1", "here but not in wav.scp"),
        ("text", "a-2 two\na-1 one\nb-1 three\n", "a-1", "not sorted"),
        ("text", "a-1 one\na-2 two\na-2 too\nb-1 three\n", "a-2", "duplicate id"),
        ("wav.scp", TABLES["wav.scp"] + "b-1 wav/3.wav\n", "b-1", "duplicate id"),
        ("wav.scp", TABLES["wav.scp"].replace("2.wav", "4.wav"), "a-2", "not exist"),
        ("wav.scp", TABLES["wav.scp"].replace("wav/2.wav", "data/text"), "a-2", "not "),
        ("wav.scp", TABLES["wav.scp"].replace("wav/2.wav", "false |"), "a-2", "code 1"),
        ("utt2spk", "a-1 a\na-2\nb-1 b\n", "a-2", "nothing after the id"),
        ("utt2spk", "a-1 a\nb-1 b\n", "a-2", "in wav.scp but not here"),
        ("utt2num_samples", "a-1 8000\na-2 15999\nb-1 24000\n", "a-2", "16000"),
        ("utt2num_samples", "a-1 8000\na-2 many\nb-1 24000\n", "a-2", "16000"),
        ("utt2dur", "a-1 1.0\na-2 2.1\nb-1 3.0\n", "a-2", "duration mismatch: 2.1"),
    ],
)
def test_one_fault_is_one_problem(
    table: str, content: str, utt_id: str, reason: str
) -> None:
    (problem,) = validate_kaldi(make({**TABLES, table: content}))
    assert (problem.utt_id, problem.file) == (utt_id, f"data/{table}")
    assert reason in problem.reason
    assert problem.remedy.endswith(".")
    assert str(problem).startswith(f"data/{table}: {utt_id}: ")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a-1 rec 0.5 3.5", "ends at 3.5 s, its recording rec at 3.000 s"),
        ("a-1 rec 3.5 -1", "ends at -1.0 s, its recording rec at 3.000 s"),
        ("a-1 rec 1.5 0.5", "is not a valid time span"),
        ("a-1 rec -0.5 0.5", "is not a valid time span"),
        ("a-1 other 0.5 1.25", "its recording other is not in wav.scp"),
        ("a-1 rec 0.5", "is not '<recording> <start> <end>'"),
    ],
)
def test_bad_segments(line: str, reason: str) -> None:
    (problem,) = validate_kaldi(
        make({**SEGMENTED, "segments": f"{line}\na-2 rec 1.25 -1\n"})
    )
    assert (problem.utt_id, problem.file) == ("a-1", "data/segments")
    assert reason in problem.reason


def test_length_of_a_segment() -> None:
    wrong = {**SEGMENTED, "utt2num_samples": "a-1 6500\na-2 14000\n"}
    (problem,) = validate_kaldi(make(wrong))
    assert (problem.utt_id, problem.file) == ("a-1", "data/utt2num_samples")
    assert "6500 samples, the audio has 6000" in problem.reason


def test_every_problem_is_listed_up_to_a_limit() -> None:
    folder = make({**TABLES, "text": "a-1\na-2\nb-1\n"})
    Path("wav/1.wav").unlink()
    problems = validate_kaldi(folder)
    assert len(problems) == 4
    assert listing(problems, 3).count("empty text") == 3
    assert listing(problems, 3).endswith("... and 1 more")


def test_audio_is_not_touched_unless_asked() -> None:
    folder = make(TABLES)
    shutil.rmtree("wav")
    assert validate_kaldi(folder, check_audio=False) == []
    assert len(validate_kaldi(folder)) == 3


def test_missing_files() -> None:
    (problem,) = validate_kaldi("no-such")
    assert problem.file == "no-such/wav.scp"
    without = {name: text for name, text in TABLES.items() if name != "utt2spk"}
    (problem,) = validate_kaldi(make(without))
    assert problem.file == "data/utt2spk"


def with_text(cut: MonoCut, text: str) -> MonoCut:
    return cut.map_supervisions(lambda segment: fastcopy(segment, text=text))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cut: with_text(cut, " "), "empty text"),
        (lambda cut: cut.with_id("b-1"), "duplicate id"),
        (lambda cut: cut.drop_supervisions(), "0 supervisions"),
        (lambda cut: fastcopy(cut, duration=2.5), "ends 0.500 s after its recording"),
        (lambda cut: fastcopy(cut, duration=-1.0), "duration must be greater than 0"),
    ],
    ids=["text", "duplicate", "supervision", "end", "negative"],
)
def test_one_fault_of_a_cut(change: Callable[[MonoCut], MonoCut], reason: str) -> None:
    one, two, three = cuts_from_kaldi(make(TABLES))
    (problem,) = validate_cuts(CutSet([one, three, change(two)]))
    assert problem.utt_id in ("a-2", "b-1")
    assert reason in problem.reason


def test_audio_behind_cuts() -> None:
    cuts = list(cuts_from_kaldi(make(TABLES)))
    Path("wav/1.wav").unlink()
    soundfile.write("wav/2.wav", np.zeros(15000, dtype=np.int16), RATE)
    missing, changed = validate_cuts(CutSet(cuts))
    assert (missing.utt_id, missing.file) == ("a-1", "wav/1.wav")
    assert "does not exist" in missing.reason
    assert (changed.utt_id, changed.file) == ("a-2", "wav/2.wav")
    assert "16000 samples" in changed.reason
    assert "15000" in changed.reason
    assert validate_cuts(CutSet(cuts), check_audio=False) == []


def test_command_lists_problems_of_cuts() -> None:
    one, two, _ = cuts_from_kaldi(make(TABLES))
    CutSet([one, with_text(two, "")]).to_file("cuts.jsonl")
    with pytest.raises(SystemExit) as stop:
        cuts_to_kaldi_command.main(["--cuts_file", "cuts.jsonl", "--data_dir", "out"])
    assert "1 problems" in stop.value.code
    assert "a-2: empty text" in stop.value.code
    assert not Path("out").exists()
