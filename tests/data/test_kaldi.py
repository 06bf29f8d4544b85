"""Kaldi data folders <-> cuts: nothing is lost, and nothing is read too early."""

import pickle
import weakref
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from espnet_kd.bin import cuts_to_kaldi as cuts_to_kaldi_command
from espnet_kd.bin import kaldi_to_cuts as kaldi_to_cuts_command
from espnet_kd.data import audio
from espnet_kd.data.kaldi import cuts_from_kaldi, cuts_to_kaldi

RATE = 8000


def tone(num_samples: int, seed: int = 0) -> np.ndarray:
    """16-bit noise: every sample can be recognised after a round trip."""
    rng = np.random.default_rng(seed)
    return rng.integers(-9000, 9000, num_samples).astype(np.int16)


def write_folder(folder: Path, **tables: str) -> Path:
    """Write a Kaldi folder from its tables; `wav_scp` becomes wav.scp."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        lines = [line.strip() for line in text.strip().splitlines()]
        (folder / name.replace("wav_", "wav.")).write_text("\n".join(lines) + "\n")
    return folder


def read(path: Path) -> dict[str, str]:
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three whole recordings of two speakers, paths relative to the recipe folder."""
    monkeypatch.chdir(tmp_path)
    Path("wav").mkdir()
    for index in range(3):
        soundfile.write(f"wav/{index}.wav", tone(4001 + index, index), RATE)
    return write_folder(
        Path("data"),
        wav_scp="""a-1 wav/0.wav
                   a-2 wav/1.wav
                   b-1 wav/2.wav""",
        text="""a-1 one two
                a-2 zürich café
                b-1 three""",
        utt2spk="""a-1 a
                   a-2 a
                   b-1 b""",
    )


@pytest.fixture
def long_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One recording of 3 s with three segments, the last one to its end."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("long.wav", tone(3 * RATE), RATE)
    return write_folder(
        Path("data"),
        wav_scp="rec long.wav",
        segments="""a-1 rec 0.125 1.0
                    a-2 rec 1.0 2.3456
                    b-1 rec 2.5 -1""",
        text="""a-1 one
                a-2 two
                b-1 three""",
        utt2spk="""a-1 a
                   a-2 a
                   b-1 b""",
    )


def test_cut_equals_the_folder(folder: Path) -> None:
    cuts = list(cuts_from_kaldi(folder))
    assert [cut.id for cut in cuts] == ["a-1", "a-2", "b-1"]
    assert [cut.supervisions[0].id for cut in cuts] == ["a-1", "a-2", "b-1"]
    assert [cut.supervisions[0].text for cut in cuts] == [
        "one two",
        "zürich café",
        "three",
    ]
    assert [cut.supervisions[0].speaker for cut in cuts] == ["a", "a", "b"]
    assert [cut.num_samples for cut in cuts] == [4001, 4002, 4003]
    assert [cut.recording.sources[0].source for cut in cuts] == [
        f"wav/{index}.wav" for index in range(3)
    ]
    np.testing.assert_allclose(
        cuts[1].load_audio()[0] * 32768, tone(4002, 1), atol=0.01
    )


def test_round_trip_of_whole_recordings(folder: Path) -> None:
    assert cuts_to_kaldi(cuts_from_kaldi(folder), "again") == 3
    for name in ("wav.scp", "text", "utt2spk"):
        assert read(Path("again", name)) == read(folder / name)
    assert read(Path("again/spk2utt")) == {"a": "a-1 a-2", "b": "b-1"}
    assert read(Path("again/utt2num_samples")) == {
        "a-1": "4001",
        "a-2": "4002",
        "b-1": "4003",
    }
    assert Path("again/feats_type").read_text() == "raw\n"
    assert not Path("again/segments").exists()


def test_segments_have_the_right_audio(long_recording: Path) -> None:
    cuts = {cut.id: cut for cut in cuts_from_kaldi(long_recording)}
    whole = tone(3 * RATE) / 32768
    for utt_id, first, last in (
        ("a-1", 1000, 8000),
        ("a-2", 8000, round(2.3456 * RATE)),
        ("b-1", 20000, 24000),
    ):
        assert cuts[utt_id].num_samples == last - first
        samples = cuts[utt_id].load_audio()[0]
        np.testing.assert_allclose(samples, whole[first:last], atol=1e-6)


def test_round_trip_of_segments(long_recording: Path) -> None:
    first = list(cuts_from_kaldi(long_recording))
    cuts_to_kaldi(CutSet(first), "again")
    assert read(Path("again/wav.scp")) == {"rec": "long.wav"}
    assert read(Path("again/segments")) == {
        "a-1": "rec 0.125 1",
        "a-2": "rec 1 2.3456",
        "b-1": "rec 2.5 3",
    }
    assert read(Path("again/reco2num_samples")) == {"rec": "24000"}
    second = list(cuts_from_kaldi("again"))
    assert [cut.to_dict() for cut in second] == [cut.to_dict() for cut in first]


def test_whole_recordings_leave_no_old_segments(long_recording: Path) -> None:
    long_cuts = list(cuts_from_kaldi(long_recording))
    cuts_to_kaldi(CutSet(long_cuts), "again")
    unlabelled = CutSet([long_cuts[0].recording.to_cut()])
    cuts_to_kaldi(unlabelled, "again")
    assert not Path("again/segments").exists()
    assert not Path("again/text").exists()
    assert not Path("again/reco2dur").exists()


def test_pipes_run_and_come_back(folder: Path) -> None:
    (folder / "wav.scp").write_text("a-1 cat wav/0.wav |\n")
    (cut,) = cuts_from_kaldi(folder)
    source = cut.recording.sources[0]
    assert (source.type, source.source) == ("command", "cat wav/0.wav")
    assert cut.num_samples == 4001
    np.testing.assert_allclose(cut.load_audio()[0] * 32768, tone(4001, 0), atol=0.01)
    cuts_to_kaldi(CutSet([cut]), "again")
    assert Path("again/wav.scp").read_text() == "a-1 cat wav/0.wav |\n"


def test_failing_pipe_names_recording_and_command(folder: Path) -> None:
    (folder / "wav.scp").write_text("a-1 cat no-such-file |\n")
    with pytest.raises(ValueError, match="a-1.*'cat no-such-file' ended with code 1"):
        list(cuts_from_kaldi(folder))


@pytest.mark.parametrize("write_function", [None, "soundfile"])
def test_archives_of_kaldiio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_function: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    signals = {"a": tone(4000, 1), "b": tone(5000, 2)}
    Path("data").mkdir()
    kaldiio.save_ark(
        "data/audio.ark",
        {  # kaldiio needs the pair in the order of its writer
            key: (signal, RATE) if write_function else (RATE, signal)
            for key, signal in signals.items()
        },
        scp="data/wav.scp",
        write_function=write_function,
    )
    cuts = {cut.id: cut for cut in cuts_from_kaldi("data")}
    for key, signal in signals.items():
        assert cuts[key].num_samples == len(signal)
        samples = cuts[key].load_audio()[0] * 32768
        np.testing.assert_allclose(samples, signal, atol=0.01)
    cuts_to_kaldi(CutSet(list(cuts.values())), "again")
    assert read(Path("again/wav.scp")) == read(Path("data/wav.scp"))


def test_no_text_means_unlabelled(folder: Path) -> None:
    (folder / "text").unlink()
    cuts = cuts_from_kaldi(folder)
    assert [cut.supervisions[0].text for cut in cuts] == [None] * 3
    cuts_to_kaldi(cuts, "again")
    assert not Path("again/text").exists()


def test_tables_in_another_order(folder: Path) -> None:
    lines = (folder / "text").read_text().splitlines()
    (folder / "text").write_text("\n".join(reversed(lines)) + "\n")
    texts = {cut.id: cut.supervisions[0].text for cut in cuts_from_kaldi(folder)}
    assert texts == read(folder / "text")


def test_folder_is_sorted_by_bytes(folder: Path) -> None:
    cuts = list(cuts_from_kaldi(folder))
    ids = ["b-1", "B-2", "a_3"]
    renamed = [cut.with_id(utt_id) for cut, utt_id in zip(cuts, ids)]
    cuts_to_kaldi(CutSet(renamed), "again")
    written = [line.split()[0] for line in Path("again/text").read_text().splitlines()]
    assert written == ["B-2", "a_3", "b-1"]


def big_folder(folder: Path, number: int, **lengths: str) -> Path:
    """Many utterances whose audio does not exist."""
    ids = [f"utt{index:06d}" for index in range(number)]
    tables = {
        "wav_scp": "nowhere/{}.wav",
        "text": "one {}",
        "utt2spk": "spk",
        **lengths,
    }
    return write_folder(
        folder,
        **{
            name: "\n".join(f"{utt_id} {value.format(utt_id)}" for utt_id in ids)
            for name, value in tables.items()
        },
    )


def test_with_lengths_no_audio_is_needed(tmp_path: Path) -> None:
    folder = big_folder(tmp_path, 50, utt2num_samples="8000", utt2dur="1.0")
    cuts = cuts_from_kaldi(folder)
    assert [cut.num_samples for cut in cuts] == [8000] * 50
    assert {cut.sampling_rate for cut in cuts} == {8000}
    cuts_to_kaldi(cuts, tmp_path / "again")
    with pytest.raises(Exception, match="nowhere/utt000000.wav"):
        next(iter(cuts)).load_audio()


def test_given_rate_replaces_utt2dur(tmp_path: Path) -> None:
    folder = big_folder(tmp_path, 2, utt2num_samples="8000")
    assert [c.duration for c in cuts_from_kaldi(folder, 16000)] == [0.5, 0.5]
    with pytest.raises(ValueError, match="nowhere/utt000000.wav does not exist"):
        list(cuts_from_kaldi(folder))


def test_first_cut_reads_only_what_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a first cut takes one block of each large table, and one audio header."""
    folder = big_folder(tmp_path, 100_000)
    soundfile.write(tmp_path / "real.wav", tone(4000), RATE)
    lines = (folder / "wav.scp").read_text().replace("nowhere/utt000000", "real", 1)
    (folder / "wav.scp").write_text(lines)
    monkeypatch.chdir(tmp_path)
    headers, taken = [], []
    real_info, real_open = audio.soundfile.info, open

    def info(path: str) -> object:
        headers.append(path)
        return real_info(path)

    def counting_open(path: Path, **kwargs: str) -> object:
        file = real_open(path, **kwargs)
        taken.append((Path(path), file))
        return file

    monkeypatch.setattr(audio.soundfile, "info", info)
    monkeypatch.setattr("espnet_kd.data.kaldi.open", counting_open, raising=False)
    cuts = iter(cuts_from_kaldi(folder))
    first = next(cuts)
    assert (first.id, first.num_samples) == ("utt000000", 4000)
    assert headers == ["real.wav"]
    assert {path.name for path, _ in taken} == {"wav.scp", "text", "utt2spk"}
    for path, file in taken:
        assert file.buffer.tell() <= 64 * 1024 < path.stat().st_size


def test_cuts_are_written_one_at_a_time(folder: Path) -> None:
    """The writer does not keep the cuts: at most two of them exist at any time."""
    template = next(iter(cuts_from_kaldi(folder)))
    alive: list[weakref.ref] = []
    most = 0

    def stream() -> object:
        nonlocal most
        for index in range(50):
            cut = template.with_id(f"{index:02d}")
            alive.append(weakref.ref(cut))
            most = max(most, sum(ref() is not None for ref in alive))
            yield cut

    assert cuts_to_kaldi(stream(), "again") == 50
    assert most <= 2


def test_lazy_and_picklable(folder: Path) -> None:
    cuts = cuts_from_kaldi(folder)
    assert cuts.is_lazy
    copy = pickle.loads(pickle.dumps(cuts))
    assert list(copy) == list(cuts) == list(cuts)


@pytest.mark.parametrize(
    "change",
    [
        lambda cut: cut.perturb_speed(1.1),
        lambda cut: cut.perturb_volume(2.0),
        lambda cut: cut.resample(16000),
        lambda cut: cut.pad(duration=2.0),
        lambda cut: cut.append(cut),
        lambda cut: cut.move_to_memory(),
    ],
    ids=["speed", "volume", "resampled", "padded", "appended", "memory"],
)
def test_audio_without_a_file_is_refused(folder: Path, change: object) -> None:
    cut = change(next(iter(cuts_from_kaldi(folder))))
    Path("again").mkdir()
    with pytest.raises(ValueError, match="save_audios"):
        cuts_to_kaldi([cut], "again")
    assert list(Path("again").iterdir()) == []


def test_saved_audio_of_a_changed_cut_is_accepted(folder: Path) -> None:
    faster = cuts_from_kaldi(folder).perturb_speed(1.1)
    saved = faster.save_audios("saved")
    cuts_to_kaldi(saved, "again")
    for cut, again in zip(faster, cuts_from_kaldi("again")):
        assert (again.id, again.num_samples) == (cut.id, cut.num_samples)


def test_bad_cuts_are_refused_by_name(folder: Path) -> None:
    one, two, _ = cuts_from_kaldi(folder)
    with pytest.raises(ValueError, match="utterance a-1 occurs twice"):
        cuts_to_kaldi([one, one], "again")
    with pytest.raises(ValueError, match="id 'a 1' is empty or has a space"):
        cuts_to_kaldi([one.with_id("a 1")], "again")
    two.recording.id = two.supervisions[0].recording_id = "a-1"
    with pytest.raises(ValueError, match="recording a-1 is 'wav/1.wav' here"):
        cuts_to_kaldi([one, two], "again")
    assert not Path("again").exists()


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("wav.scp", "a-1\n", "a-1: nothing after the id"),
        ("wav.scp", "a-1 wav/0.wav\na-1 wav/1.wav\n", "a-1 occurs twice"),
        ("wav.scp", "a-1 data/text\n", "not audio that libsndfile can read"),
        ("utt2num_samples", "a-1 many\n", "utt2num_samples: a-1: 'many'"),
        ("segments", "a-1 wav/0.wav 0\n", "segments: utterance a-1"),
        ("segments", "a-1 other 0 1\n", "a-1 names recording other"),
    ],
)
def test_bad_folders_are_refused_by_name(
    folder: Path, table: str, text: str, message: str
) -> None:
    (folder / table).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(cuts_from_kaldi(folder))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such/wav.scp.*local/data.sh"):
        cuts_from_kaldi(tmp_path / "no-such")


def test_two_channels_are_refused(folder: Path) -> None:
    soundfile.write("wav/0.wav", np.zeros((100, 2)), RATE)
    with pytest.raises(ValueError, match="wav/0.wav' has 2 channels.*remix 1"):
        list(cuts_from_kaldi(folder))


def test_commands_there_and_back(folder: Path) -> None:
    kaldi_to_cuts_command.main(
        ["--data_dir", str(folder), "--output_file", "out/cuts.jsonl.gz"]
    )
    assert [path.name for path in Path("out").iterdir()] == ["cuts.jsonl.gz"]
    assert list(CutSet.from_jsonl_lazy("out/cuts.jsonl.gz")) == list(
        cuts_from_kaldi(folder)
    )
    cuts_to_kaldi_command.main(
        ["--cuts_file", "out/cuts.jsonl.gz", "--data_dir", "again"]
    )
    assert read(Path("again/text")) == read(folder / "text")


def test_commands_refuse_bad_data_and_write_nothing(folder: Path) -> None:
    Path("wav/1.wav").unlink()
    (folder / "text").write_text("a-1\na-2 two\nb-1 three\n")
    with pytest.raises(SystemExit) as stop:
        kaldi_to_cuts_command.main(
            ["--data_dir", str(folder), "--output_file", "out/cuts.jsonl"]
        )
    assert "2 problems" in stop.value.code
    assert "data/text: a-1: empty text" in stop.value.code
    assert "a-2: audio file wav/1.wav does not exist" in stop.value.code
    assert not Path("out").exists()
