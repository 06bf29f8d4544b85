"""SPHERE files: headers, reading by libsndfile and through sph2pipe."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_kd.corpora import sphere
from espnet_kd.data.format import format_data
from espnet_kd.data.kaldi import cuts_from_kaldi, cuts_to_kaldi
from tests.corpora import wsj_tree

needs_sph2pipe = pytest.mark.skipif(
    shutil.which("sph2pipe") is None, reason="sph2pipe is not on PATH"
)
HEADER = """NIST_1A
   1024
database_id -s4 wsj1
channel_count -i 2
sample_count -i 37120
sample_rate -i 8000
sample_max -i 2234
sample_n_bytes -i 1
sample_byte_format -s1 1
sample_coding -s27 ulaw,embedded-shorten-v2.00
end_head
"""


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestHeader:
    def test_fields(self, tmp_path):
        header = sphere.read_header(write(tmp_path / "a.sph", HEADER.ljust(1024)))
        assert header == sphere.Header(
            sample_rate=8000,
            channel_count=2,
            sample_count=37120,
            sample_coding="ulaw,embedded-shorten-v2.00",
            sample_n_bytes=1,
            sample_byte_format="1",
        )

    def test_coding_is_pcm_by_default(self, tmp_path):
        lines = [line for line in HEADER.splitlines() if "sample_coding" not in line]
        path = write(tmp_path / "a.sph", "\n".join(lines).ljust(1024))
        assert sphere.read_header(path).sample_coding == "pcm"

    @pytest.mark.parametrize(
        "old, new, field",
        [
            ("sample_rate -i 8000\n", "", "sample_rate is missing"),
            ("sample_count -i 37120", "sample_count -i many", "sample_count is 'many'"),
            ("channel_count -i 2", "channel_count -i 0", "channel_count is '0'"),
            ("end_head\n", "", "end_head"),
            ("NIST_1A", "RIFF", "not a SPHERE file"),
            ("   1024", "   large", "not a SPHERE file"),
        ],
    )
    def test_damage_is_named(self, tmp_path, old, new, field):
        path = write(tmp_path / "a.sph", HEADER.replace(old, new).ljust(1024))
        with pytest.raises(ValueError, match="a.sph.*Copy") as error:
            sphere.read_header(path)
        assert field in str(error.value)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            sphere.read_header(tmp_path / "a.sph")


@pytest.mark.parametrize("big_endian", [False, True])
def test_plain_pcm_needs_no_program(tmp_path, monkeypatch, big_endian):
    monkeypatch.setenv("PATH", "")
    audio = wsj_tree.samples("4k0c0301")
    content = wsj_tree.sphere(audio[None], big_endian=big_endian)
    path = write(tmp_path / "it's here" / "a.wv1", content)
    recording = sphere.recording(path, "a")
    assert recording.sources[0].type == "file"
    assert (recording.sampling_rate, recording.num_samples) == (16000, len(audio))
    assert np.array_equal(recording.load_audio()[0], (audio / 2**15).astype("float32"))


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write(tmp_path / "a.sph", HEADER.ljust(1024))
    with pytest.raises(FileNotFoundError, match="lhotse install-sph2pipe"):
        sphere.recording(path, "a")


@pytest.mark.parametrize("channel", [-1, 2])
def test_a_missing_channel_is_refused(tmp_path, channel):
    path = write(tmp_path / "a.sph", HEADER.ljust(1024))
    with pytest.raises(ValueError, match=f"no channel {channel} .channel_count is 2"):
        sphere.recording(path, "a", channel)


def ulaw(code: np.ndarray) -> np.ndarray:
    """ITU-T G.711: mu-law codes to 16-bit samples."""
    code = ~code.astype(np.uint8)
    exponent, mantissa = (code >> 4) & 7, code & 15
    size = ((2 * mantissa.astype(int) + 33) << exponent) - 33
    return 4 * np.where(code & 128, -size, size)


@needs_sph2pipe
class TestSph2pipe:
    def test_shorten(self, tmp_path):
        """Compressed audio in the Kaldi folder, then as wav, sample by sample."""
        ids = ["4k0c0301", "4k0c030a"]
        recordings = []
        for number, name in enumerate(ids):
            audio = wsj_tree.samples(name)[None]
            content = wsj_tree.sphere(audio, coding="shorten", big_endian=number > 0)
            path = write(tmp_path / "it's (here)" / f"{name}.wv1", content)
            recordings.append(sphere.recording(path, name))
        cuts_to_kaldi([r.to_cut() for r in recordings], tmp_path / "data")
        lines = (tmp_path / "data" / "wav.scp").read_text().splitlines()
        assert all("sph2pipe -f wav -p -c 1 '" in line for line in lines)
        assert all(line.endswith(" |") for line in lines)
        # The data folder has lengths without running a command.
        lengths = [cut.num_samples for cut in cuts_from_kaldi(tmp_path / "data")]
        assert lengths == [len(wsj_tree.samples(name)) for name in ids]
        assert format_data(tmp_path / "data", tmp_path / "dump", 16000, [1.0]) == 2
        for name in ids:
            made, rate = soundfile.read(
                tmp_path / "dump" / "wav" / f"{name}.wav", dtype="int16"
            )
            assert rate == 16000
            assert np.array_equal(made, wsj_tree.samples(name))

    @pytest.mark.parametrize("channel", [0, 1])
    def test_a_channel_of_two(self, tmp_path, channel):
        codes = np.random.default_rng(0).integers(256, size=(2, 801)).astype(np.uint8)
        content = wsj_tree.sphere(codes, rate=8000, coding="ulaw")
        recording = sphere.recording(write(tmp_path / "a.sph", content), "a", channel)
        assert recording.channel_ids == [0] and recording.sampling_rate == 8000
        expected = (ulaw(codes[channel]) / 2**15).astype("float32")
        assert np.array_equal(recording.load_audio()[0], expected)
