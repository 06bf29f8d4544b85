"""Connected digits, from a small generated data set in the form of FSDD."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from espnet_kd.bin import prepare_fsdd
from espnet_kd.corpora import fsdd, noise
from espnet_kd.corpora.sets import LEVEL
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import validate_kaldi

SPEAKERS = ["ann", "bob", "cat", "dan", "eve", "fay"]
# The first and the last take of each part.
RECORDED = [0, 4, 5, 7, 8, 28, 29, 49]
SETS = [
    "train_teacher",
    "train_labelled",
    "train_unlabelled",
    "train_full",
    "valid",
    "test",
]
SMALL = [
    "--num_train_teacher=18",
    "--num_train_labelled=6",
    "--num_train_unlabelled=24",
    "--num_valid=6",
    "--num_test=12",
]


@pytest.fixture(scope="module")
def recordings_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 speakers x 10 digits x some takes of noise, 0.1-0.3 s each."""
    folder = tmp_path_factory.mktemp("fsdd")
    (folder / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in RECORDED:
                samples = 0.1 * rng.standard_normal(rng.integers(800, 2400))
                path = folder / "recordings" / f"{digit}_{speaker}_{take}.wav"
                soundfile.write(path, samples, fsdd.RATE)
    return folder


def prepare(recordings_dir: Path, *options: str) -> None:
    prepare_fsdd.main(["--fsdd_dir", str(recordings_dir), *SMALL, *options])


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".done"
    }


@pytest.fixture
def data(recordings_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare(recordings_dir)
    return Path("data")


def test_takes_of_the_parts_are_disjoint_and_complete() -> None:
    takes = [take for part in fsdd.TAKES.values() for take in part]
    assert sorted(takes) == list(range(50))
    assert set(fsdd.TAKES["test"]) == set(range(5))


def test_no_recording_is_in_two_parts(recordings_dir: Path) -> None:
    seen: dict[bytes, str] = {}
    for part in fsdd.TAKES:
        recordings = fsdd.load_recordings(recordings_dir, part)
        assert sorted(recordings) == SPEAKERS
        for takes in (takes for words in recordings.values() for takes in words):
            assert len(takes) == 2
            for recording in takes:
                assert noise.rms(recording) == pytest.approx(1)
                assert seen.setdefault(recording.tobytes(), part) == part
    assert len(seen) == len(SPEAKERS) * 10 * len(RECORDED)


def test_an_utterance_holds_only_recordings_of_its_speaker_and_part(
    recordings_dir: Path,
) -> None:
    """At a very high SNR each word is found again, sample by sample."""
    recordings = fsdd.load_recordings(recordings_dir, "test")
    for utterance in fsdd.utterances(recordings, "test", 6, snr=(200, 200)):
        words = utterance.text.split()
        assert 2 <= len(words) <= 7
        place = 0
        for word in words:
            takes = recordings[utterance.speaker][fsdd.WORDS.index(word)]
            fits = [_first_match(utterance.samples, take, place) for take in takes]
            start, length, gain_db = min(fit for fit in fits if fit)
            silence = utterance.samples[place:start]
            assert np.max(np.abs(silence), initial=0) < 1e-6
            assert len(silence) <= 0.15 * fsdd.RATE
            assert abs(gain_db) <= 3
            place = start + length
        tail = len(utterance.samples) - place
        assert 0.05 * fsdd.RATE <= tail <= 0.15 * fsdd.RATE


def _first_match(
    samples: np.ndarray, take: np.ndarray, place: int
) -> tuple[int, int, float] | None:
    """(start, length, gain in dB) of `take` if it occurs soon after `place`."""
    for start in range(place, place + int(0.15 * fsdd.RATE) + 1):
        stretch = samples[start : start + len(take)]
        if len(stretch) == len(take):
            gain = stretch[0] / take[0]
            if 0.5 < gain < 2 and np.allclose(stretch, gain * take, atol=1e-5):
                return start, len(take), 20 * np.log10(gain)
    return None


def test_sets_and_their_texts(data: Path) -> None:
    sizes = dict(zip(SETS, (18, 6, 24, 30, 6, 12)))
    cuts = {name: list(cuts_from_kaldi(data / name)) for name in SETS}
    assert {name: len(members) for name, members in cuts.items()} == sizes
    for name in SETS:
        assert validate_kaldi(data / name) == []
    ids = {name: {cut.id for cut in members} for name, members in cuts.items()}
    assert ids["train_labelled"] < ids["train_teacher"]
    assert ids["train_full"] == ids["train_labelled"] | ids["train_unlabelled"]
    for one, other in (
        ("train_teacher", "train_unlabelled"),
        ("train_full", "valid"),
        ("train_full", "test"),
        ("train_teacher", "valid"),
        ("train_teacher", "test"),
        ("valid", "test"),
    ):
        assert not ids[one] & ids[other]
    assert not (data / "train_unlabelled/text").exists()
    truth = dict(
        line.split(maxsplit=1)
        for line in (data / "train_unlabelled/text_reference").read_text().splitlines()
    )
    assert truth.keys() == ids["train_unlabelled"]
    for cut in cuts["train_full"]:
        text = cut.supervisions[0].text
        assert set(text.split()) <= set(fsdd.WORDS)
        assert truth.get(cut.id, text) == text
        assert cut.supervisions[0].speaker == cut.id.split("-")[0]


def test_audio_is_8_khz_16_bit_of_one_level(data: Path) -> None:
    for path in (data / "wav").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
        samples, _ = soundfile.read(path)
        assert noise.rms(samples) == pytest.approx(LEVEL, rel=0.01)


def test_snr_equals_utt2noise(recordings_dir: Path) -> None:
    """The same utterance at 200 dB is the speech; the difference is the noise."""
    recordings = fsdd.load_recordings(recordings_dir, "unlabelled")
    clean = fsdd.utterances(recordings, "unlabelled", 12, snr=(200, 200))
    noisy = fsdd.utterances(recordings, "unlabelled", 12, snr=(0, 20))
    ratios = []
    for speech, mixture in zip(clean, noisy):
        added = mixture.samples - speech.samples
        snr_db = 20 * np.log10(noise.rms(speech.samples) / noise.rms(added))
        assert snr_db == pytest.approx(mixture.snr_db, abs=1e-3)
        ratios.append(snr_db)
    assert 0 <= min(ratios) < 8
    assert 12 < max(ratios) <= 20


def test_training_audio_changes_tempo_and_test_audio_does_not(
    recordings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[tuple[int, int]] = []
    real = scipy.signal.resample

    def watched(samples: np.ndarray, number: int) -> np.ndarray:
        lengths.append((len(samples), number))
        return real(samples, number)

    monkeypatch.setattr(scipy.signal, "resample", watched)
    for part, changed in (("labelled", 30), ("valid", 0), ("test", 0)):
        lengths.clear()
        list(fsdd.utterances(fsdd.load_recordings(recordings_dir, part), part, 30))
        assert len(lengths) == changed
        speeds = [old / new for old, new in lengths]
        assert all(0.899 < speed < 1.101 for speed in speeds)
        assert not speeds or max(speeds) - min(speeds) > 0.1


def test_same_seed_same_data_other_seed_other_data(
    data: Path, recordings_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checksums(data)
    (data / ".done").unlink()
    prepare(recordings_dir)
    assert checksums(data) == first
    prepare(recordings_dir, "--seed=1")
    other = checksums(data)
    name = "wav/test/ann-test-00000.wav"
    assert other[name] != first[name]


def test_utterances_do_not_depend_on_how_many_there_are(
    data: Path, recordings_dir: Path
) -> None:
    first = checksums(data / "wav")
    prepare(recordings_dir, "--num_train_teacher=7", "--num_test=20")
    more = checksums(data / "wav")
    assert {name: more[name] for name in first} == first


def test_done_data_is_left_alone_and_half_done_data_is_not(
    data: Path, recordings_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    prepare(recordings_dir)
    assert "already made" in capsys.readouterr().out
    prepare(Path("moved/away"))
    assert "already made" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == times
    (data / ".done").unlink()
    (data / "test/text").unlink()
    prepare(recordings_dir)
    assert (data / "test/text").exists()
    prepare(recordings_dir, "--num_test=3")
    assert len((data / "test/text").read_text().splitlines()) == 3


def test_missing_data_set_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recordings_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path / "nowhere")
    assert "nowhere/recordings" in stop.value.code
    assert "Jakobovski/free-spoken-digit-dataset" in stop.value.code
    assert not Path("data/.done").exists()
    with pytest.raises(SystemExit, match="--num_train_labelled 99 is more"):
        prepare(recordings_dir, "--num_train_labelled=99")


def test_incomplete_or_wrong_recordings_are_named(tmp_path: Path) -> None:
    (tmp_path / "recordings").mkdir()
    path = tmp_path / "recordings" / "3_ann_0.wav"
    soundfile.write(path, np.ones(100) / 2, fsdd.RATE)
    with pytest.raises(FileNotFoundError, match="ann has no recordings of digit 0"):
        fsdd.load_recordings(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="no files for part 'valid'"):
        fsdd.load_recordings(tmp_path, "valid")
    soundfile.write(path, np.ones(100) / 2, 16000)
    with pytest.raises(ValueError, match="3_ann_0.wav: 16000 Hz"):
        fsdd.load_recordings(tmp_path, "test")
