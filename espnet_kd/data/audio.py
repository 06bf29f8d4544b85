"""Where audio is: entries of a wav.scp, their headers and their Lhotse sources.

An entry is a file, a shell command that ends in "|", or a place in a Kaldi archive.
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

PATHS = "Relative paths hold from the recipe folder: run there, or repair wav.scp."


class AudioError(ValueError):
    """Audio that cannot be read: why, and what to do about it."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy


class Header(NamedTuple):
    """What an audio header tells."""

    rate: int
    num_samples: int


def read_header(location: str) -> Header:
    """Read rate and length of an entry; a file's audio is not decoded.

    Raises:
        AudioError: where the file is missing, is no audio or has several channels, or
            where the command fails.
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
        reason = f"'{location}' is no audio that libsndfile reads ({error})"
        raise AudioError(reason, "Convert it to wav or flac.") from error
    if info.channels != 1:
        reason = f"'{location}' has {info.channels} channels, one is wanted"
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
        AudioError: where the entry is empty or its archive holds no audio there.
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
    """The shell command that gives one audio file out of a Kaldi archive.

    Lhotse knows no archives. The place in the archive follows as a comment, from which
    `entry` restores the line of wav.scp.
    """
    if not Path(path).is_file():
        raise AudioError(f"archive {path} does not exist", PATHS)
    with open(path, "rb") as archive:
        archive.seek(offset)
        head = archive.read(16)
    if head[:5] == b"AUDIO":  # kaldiio: the size of the length, the length, the file
        width = head[5]
        first, size = offset + 6 + width, int.from_bytes(head[6 : 6 + width], "little")
    elif head[:4] == b"RIFF":  # Kaldi: a plain wav file, which says how long it is
        first, size = offset, 8 + int.from_bytes(head[4:8], "little")
    else:
        remedy = "Write the audio as files: 'asr.sh --audio_format flac' or 'wav-copy'."
        raise AudioError(f"{path}:{offset}: no wav or flac stands there", remedy)
    return (
        f"tail -c +{first + 1} {shlex.quote(path)} | head -c {size} # {path}:{offset}"
    )
