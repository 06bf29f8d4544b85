"""NIST SPHERE files, the audio of the LDC's older corpora (.wv1, .wv2, .sph).

A header of ASCII lines, `<field> -<type> <value>`, then samples: PCM or mu-law, one or
several channels, often compressed by shorten ("pcm,embedded-shorten-v2.00").
libsndfile reads the uncompressed ones; the others need the LDC's sph2pipe.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import Recording
    from lhotse.audio import AudioSource

MAGIC = b"NIST_1A\n"


class Header(NamedTuple):
    """The fields of a SPHERE header that are needed to read the samples."""

    sample_rate: int  # Hz
    channel_count: int
    sample_count: int  # of each channel
    sample_coding: str  # pcm, ulaw, ...; with ",embedded-shorten-v2.00" compressed
    sample_n_bytes: int  # of a sample as recorded, before shorten
    sample_byte_format: str  # "01" is little endian, "10" big endian, "1" one byte

    @property
    def is_compressed(self) -> bool:
        """Whether the samples are shorten's (or another program's) output."""
        return "," in self.sample_coding


def read_header(path: str | Path) -> Header:
    """Read the header of a SPHERE file.

    Without `sample_coding` a file is PCM; samples of one byte do not need
    `sample_byte_format`.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a SPHERE file, or a field is missing or not a number;
            the message names the file and the field.
    """
    fields = _fields(Path(path))
    return Header(
        sample_rate=_number(path, fields, "sample_rate"),
        channel_count=_number(path, fields, "channel_count"),
        sample_count=_number(path, fields, "sample_count"),
        sample_coding=fields.get("sample_coding", "pcm"),
        sample_n_bytes=_number(path, fields, "sample_n_bytes"),
        sample_byte_format=fields.get("sample_byte_format", "1"),
    )


def _fields(path: Path) -> dict[str, str]:
    """Every field of a header as written."""
    with open(path, "rb") as audio:
        magic, size = audio.readline(), audio.readline().strip()
        if magic != MAGIC or not size.isdigit():
            raise ValueError(
                f"{path}: not a SPHERE file (it does not begin with NIST_1A and the "
                "size of its header). Copy it again from the distribution."
            )
        # Latin 1 decodes any byte; comments in some headers are not ASCII.
        lines = audio.read(int(size) - audio.tell()).decode("latin-1").splitlines()
    fields = {}
    for line in lines:
        if line.strip() == "end_head":
            return fields
        name, _, typed = line.partition(" ")
        if not name.startswith(";"):
            fields[name] = typed.partition(" ")[2].strip()
    raise ValueError(
        f"{path}: the header has no field end_head within its {int(size)} bytes. Copy "
        "the file again from the distribution."
    )


def _number(path: str | Path, fields: dict[str, str], name: str) -> int:
    value = fields.get(name)
    if value is None or not value.isdigit() or int(value) == 0:
        what = "is missing" if value is None else f"is '{value}', not a positive number"
        raise ValueError(
            f"{path}: the SPHERE header's field {name} {what}. Copy the file again "
            "from the distribution."
        )
    return int(value)


def sph2pipe() -> str:
    """The path of the program sph2pipe: on PATH, or where Lhotse installs it.

    Raises:
        FileNotFoundError: if it is not found.
    """
    import lhotse  # noqa: F401 - puts its own tools' folder on PATH

    program = shutil.which("sph2pipe")
    if program is None:
        raise FileNotFoundError(
            "sph2pipe is not on PATH. It reads compressed, mu-law and multi-channel "
            "SPHERE files. Install it: lhotse install-sph2pipe, or build the public "
            "repository burrmill/sph2pipe and put the program on PATH."
        )
    return program


def _source(path: Path, header: Header, channel: int) -> AudioSource:
    """The source from which Lhotse, Kaldi and ESPnet read one channel of a file.

    The file itself if libsndfile can read it (one channel, PCM, not compressed), else
    a sph2pipe command that outputs the channel as 16-bit wav.
    """
    from lhotse.audio import AudioSource

    if not 0 <= channel < header.channel_count:
        raise ValueError(
            f"{path}: no channel {channel} (channel_count is {header.channel_count}, "
            "the first channel is 0)."
        )
    if header.sample_coding == "pcm" and header.channel_count == 1:
        return AudioSource("file", channels=[0], source=str(path))
    command = [sph2pipe(), "-f", "wav", "-p", "-c", str(channel + 1), str(path)]
    return AudioSource("command", channels=[0], source=shlex.join(command))


def recording(path: str | Path, recording_id: str, channel: int = 0) -> Recording:
    """One channel of a SPHERE file as a Lhotse recording; no audio is decoded.

    Its only channel is 0, whichever `channel` of the file it is, as `cuts_to_kaldi`
    requires.

    Args:
        channel: of the file, counted from 0, as Lhotse does (sph2pipe counts from 1).

    Raises:
        FileNotFoundError: if the file, or the program it needs, is missing.
        ValueError: if the header is damaged or the file has no such channel.
    """
    from lhotse import Recording

    header = read_header(path)
    return Recording(
        id=recording_id,
        sources=[_source(Path(path), header, channel)],
        sampling_rate=header.sample_rate,
        num_samples=header.sample_count,
        duration=header.sample_count / header.sample_rate,
    )
