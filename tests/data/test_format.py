"""Dump folders: copying, cutting, resampling and perturbation of audio."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_kd.bin import format_data as command
from espnet_kd.data.format import format_data
from espnet_kd.data.kaldi import read_table

RATE = 8000
TONE = 400.0  # Hz


def tone(seconds: float, rate: int = RATE, frequency: float = TONE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def pitch(path: str) -> float:
    """Frequency of the strongest partial, Hz."""
    wave, rate = soundfile.read(path)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16))
    return spectrum.argmax() * rate / (1 << 16)


def table(folder: Path, name: str) -> dict[str, str]:
    return dict(read_table(folder / name))


def write(folder: Path, **tables: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        lines = [f"{key} {value}\n" for key, value in sorted(rows.items())]
        (folder / name.replace("_", ".")).write_text("".join(lines))
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two utterances, each one file."""
    for name, seconds in (("a", 0.5), ("b", 0.73)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds), RATE)
    return write(
        tmp_path / "data",
        wav_scp={"spk-a": str(tmp_path / "a.wav"), "spk-b": str(tmp_path / "b.wav")},
        text={"spk-a": "one two", "spk-b": "three"},
        utt2spk={"spk-a": "spk", "spk-b": "spk"},
    )


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A recording of two tones, with two segments as utterances."""
    wave = np.concatenate([tone(1.0), tone(1.0, frequency=1000)])
    soundfile.write(tmp_path / "talk.wav", wave, RATE)
    return write(
        tmp_path / "long",
        wav_scp={"talk": str(tmp_path / "talk.wav")},
        segments={"spk-1": "talk 0.2 0.9", "spk-2": "talk 1.1 1.6"},
        text={"spk-1": "low", "spk-2": "high"},
        utt2spk={"spk-1": "spk", "spk-2": "spk"},
    )


def test_whole_files_are_not_copied(whole: Path, tmp_path: Path):
    dump = tmp_path / "dump"
    assert format_data(whole, dump, RATE, [1.0]) == 2
    for name in ("wav.scp", "text", "utt2spk"):
        assert table(dump, name) == table(whole, name)
    assert table(dump, "utt2num_samples") == {"spk-a": "4000", "spk-b": "5840"}
    assert not (dump / "wav").exists()


def test_segments_become_files(long: Path, tmp_path: Path):
    dump = tmp_path / "dump"
    assert format_data(long, dump, RATE, [1.0]) == 2
    files = table(dump, "wav.scp")
    assert files.keys() == {"spk-1", "spk-2"} and not (dump / "segments").exists()
    talk, _ = soundfile.read(tmp_path / "talk.wav")
    for utt_id, (start, end) in {"spk-1": (0.2, 0.9), "spk-2": (1.1, 1.6)}.items():
        wave, rate = soundfile.read(files[utt_id])
        assert rate == RATE
        np.testing.assert_allclose(wave, talk[int(start * RATE) : int(end * RATE)])
    assert table(dump, "text") == table(long, "text")
    assert table(dump, "utt2num_samples") == {"spk-1": "5600", "spk-2": "4000"}


def test_a_command_becomes_a_file(whole: Path, tmp_path: Path):
    rows = {k: f"cat {path} |" for k, path in table(whole, "wav.scp").items()}
    write(whole, wav_scp=rows)
    format_data(whole, tmp_path / "dump", RATE, [1.0])
    wave, _ = soundfile.read(table(tmp_path / "dump", "wav.scp")["spk-a"])
    np.testing.assert_array_equal(wave, soundfile.read(tmp_path / "a.wav")[0])


def test_speed_perturbation(whole: Path, tmp_path: Path):
    """Ids as in Kaldi; texts unchanged; slower speech is longer and lower."""
    dump = tmp_path / "dump"
    assert format_data(whole, dump, RATE, [0.9, 1.0, 1.1]) == 6
    ids = {f"{p}spk-{x}": x for p in ("sp0.9-", "", "sp1.1-") for x in "ab"}
    files, texts = table(dump, "wav.scp"), table(dump, "text")
    speakers, samples = table(dump, "utt2spk"), table(dump, "utt2num_samples")
    assert files.keys() == texts.keys() == samples.keys() == ids.keys()
    for utt_id, name in ids.items():
        prefix = utt_id[: -len("spk-a")]
        factor = float(prefix[2:-1] or 1) if prefix else 1.0
        assert texts[utt_id] == {"a": "one two", "b": "three"}[name]
        assert speakers[utt_id] == f"{prefix}spk"
        expected = {"a": 4000, "b": 5840}[name] / factor
        assert int(samples[utt_id]) == pytest.approx(expected, abs=1)
        assert soundfile.info(files[utt_id]).frames == int(samples[utt_id])
        assert pitch(files[utt_id]) == pytest.approx(TONE * factor, rel=0.01)


def test_other_rates_are_resampled(whole: Path, tmp_path: Path):
    dump = tmp_path / "dump"
    format_data(whole, dump, 2 * RATE, [1.0])
    path = table(dump, "wav.scp")["spk-a"]
    assert soundfile.info(path).samplerate == 2 * RATE
    assert table(dump, "utt2num_samples")["spk-a"] == "8000"
    assert pitch(path) == pytest.approx(TONE, rel=0.01)


def test_unlabelled_audio(whole: Path, tmp_path: Path):
    (whole / "text").unlink()
    dump = tmp_path / "dump"
    assert format_data(whole, dump, RATE, [1.0, 0.9]) == 4
    assert not (dump / "text").exists()
    assert len(table(dump, "wav.scp")) == 4


def test_an_interrupted_run_resumes(long: Path, tmp_path: Path, monkeypatch):
    """Complete files are kept; incomplete ones leave nothing that could be used."""
    from lhotse import MonoCut

    dump, original, made = tmp_path / "dump", MonoCut.save_audio, []

    def stop_at_second(cut, path, *args, **kwargs):
        made.append(cut.id)
        if len(made) == 2:
            Path(path).write_bytes(b"half a file")
            raise KeyboardInterrupt
        return original(cut, path, *args, **kwargs)

    monkeypatch.setattr(MonoCut, "save_audio", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        format_data(long, dump, RATE, [1.0])
    assert not (dump / "wav.scp").exists()
    (first,) = made[:1]
    before = (dump / "wav" / f"{first}.wav").stat().st_mtime_ns
    assert format_data(long, dump, RATE, [1.0]) == 2
    assert made == [first, made[1], made[1]]
    assert (dump / "wav" / f"{first}.wav").stat().st_mtime_ns == before
    assert soundfile.info(table(dump, "wav.scp")[made[1]]).frames > 1000


def test_the_command(whole: Path, tmp_path: Path, capsys):
    options = ["--data_dir", str(whole), "--output_dir", str(tmp_path / "dump")]
    command.main([*options, "--fs", "8k", "--speed_perturb_factors", "1.0", "0.9"])
    assert capsys.readouterr().out == f"{tmp_path / 'dump'}: 4 utterances\n"
    assert [command.sampling_rate(x) for x in ("8k", "16000", "22.05k")] == [
        8000,
        16000,
        22050,
    ]


def test_the_command_refuses_bad_data(whole: Path, tmp_path: Path):
    (tmp_path / "b.wav").unlink()
    options = ["--data_dir", str(whole), "--output_dir", str(tmp_path / "dump")]
    with pytest.raises(
        SystemExit, match=r"data: 1 problems\n.*wav.scp: spk-b: .*b.wav"
    ):
        command.main(options)
    assert not (tmp_path / "dump").exists()


def test_stale_audio_is_made_again(whole: Path, tmp_path: Path):
    """Another rate, or another source of equal length: old files are not kept."""
    dump = tmp_path / "dump"

    def made() -> str:
        return table(dump, "wav.scp")["sp0.9-spk-a"]

    format_data(whole, dump, RATE, [0.9])
    format_data(whole, dump, 2 * RATE, [0.9])
    assert soundfile.info(made()).samplerate == 2 * RATE
    time.sleep(0.02)  # above the resolution of a file's time
    soundfile.write(tmp_path / "a.wav", tone(0.5, frequency=1000), RATE)
    format_data(whole, dump, 2 * RATE, [0.9])
    assert pitch(made()) == pytest.approx(900, rel=0.01)
    before = Path(made()).stat().st_mtime_ns
    format_data(whole, dump, 2 * RATE, [0.9])
    assert Path(made()).stat().st_mtime_ns == before
