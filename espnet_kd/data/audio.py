"""Locations of audio: entries of a wav.scp, their headers and their Lhotse sources.

An entry is a file, a shell command that ends in "|", or an offset in a Kaldi archive.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import soundfile

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse.audio import AudioSource

PATHS = "Paths are relative to the recipe folder: run there, or repair wav.scp."


class AudioError(ValueError):
    """Audio that cannot be read: the reason and a remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy


class Header(NamedTuple):
    """The fields of an audio header."""

    rate: int
    num_samples: int


def read_header(location: str) -> Header:
    """Read rate and length of an entry; a file's audio is not decoded.

    Raises:
        AudioError: if the file is missing, is not audio or has several channels, or
            if the command fails.
    """
    source = audio_source(location)
    if source.type == "command":
        audio = io.BytesIO(_output(source.source))
    elif Path(source.source).is_file():
        audio = source.source
    else:
        raise AudioError(f"audio file {source.source} does not exist", PATHS)
    try:
        info = soundfile.info(audio)
    except RuntimeError as error:
        reason = f"'{location}' is not audio that libsndfile can read ({error})"
        raise AudioError(reason, "Convert it to wav or flac.") from error
    if info.channels != 1:
        reason = f"'{location}' has {info.channels} channels, must have one"
        remedy = f"Pick one: 'sox {source.source} -t wav - remix 1 |'."
        raise AudioError(reason, remedy)
    return Header(info.samplerate, info.frames)


def _output(command: str) -> bytes:
    answer = subprocess.run(command, shell=True, capture_output=True, check=False)
    if answer.returncode != 0 or not answer.stdout:
        reason = (
            f"the command '{command}' ended with code {answer.returncode} and wrote "
            f"{len(answer.stdout)} bytes: {answer.stderr.decode().strip()[-300:]}"
        )
        raise AudioError(reason, "Run it by hand and repair wav.scp.")
    return answer.stdout


def audio_source(location: str) -> AudioSource:
    """The Lhotse source of an entry.

    Raises:
        AudioError: if the entry is empty or the archive has no audio at its offset.
    """
    from lhotse.audio import AudioSource

    if not location:
        raise AudioError("nothing after the id", "Add the audio or remove the line.")
    if location.endswith("|"):
        return AudioSource("command", channels=[0], source=location[:-1].strip())
    path, colon, offset = location.rpartition(":")
    if colon and offset.isdigit() and path.endswith(".ark"):
        command = _archive_command(path, int(offset))
        return AudioSource("command", channels=[0], source=command)
    return AudioSource("file", channels=[0], source=location)


def entry(source: AudioSource) -> str:
    """The wav.scp entry of a source of type file or command."""
    if source.type == "file":
        return str(source.source)
    _, comment, place = source.source.rpartition(" # ")
    if comment and re.fullmatch(r".+\.ark:\d+", place):
        return place
    return f"{source.source} |"


def _archive_command(path: str, offset: int) -> str:
    """The shell command that extracts one audio file from a Kaldi archive.

    Lhotse does not read archives. The offset is kept in a comment, from which `entry`
    restores the line of wav.scp.
    """
    if not Path(path).is_file():
        raise AudioError(f"archive {path} does not exist", PATHS)
    with open(path, "rb") as archive:
        archive.seek(offset)
        head = archive.read(16)
    if head[:5] == b"AUDIO":  # kaldiio: the size of the length, the length, the file
        width = head[5]
        first, size = offset + 6 + width, int.from_bytes(head[6 : 6 + width], "little")
    elif head[:4] == b"RIFF":  # Kaldi: a plain wav file, with its length in the header
        first, size = offset, 8 + int.from_bytes(head[4:8], "little")
    else:
        remedy = "Write the audio as files: 'asr.sh --audio_format flac' or 'wav-copy'."
        raise AudioError(f"{path}:{offset}: not a wav or flac file", remedy)
    return (
        f"tail -c +{first + 1} {shlex.quote(path)} | head -c {size} # {path}:{offset}"
    )
