"""Two-sided telephone calls: SPHERE files with a speaker on each channel.

A call <name>.sph becomes two recordings, <name>-A (first channel) and <name>-B, each
a wav file of its own: Kaldi's wav.scp cannot name a channel, and a sph2pipe command
would decode a whole call for each of its hundred or so utterances. The files are mu-law
like the call, so nothing is lost and they are not larger.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from tqdm import tqdm

from espnet_kd.corpora import sphere
from espnet_kd.data.files import write_whole

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import Recording, RecordingSet

SIDES = "AB"


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files whose names match, sorted; ignores case and follows links."""
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if fnmatch(name.lower(), pattern.lower())
    )


def find_calls(audio_dir: Path, *patterns: str) -> dict[str, Path]:
    """The calls below a folder, name -> file, sorted by name, in lower case.

    Args:
        patterns: of file names, e.g. "sw0*.sph": a folder may hold other corpora too.

    Raises:
        FileNotFoundError: if none is found.
        ValueError: if a name occurs twice.
    """
    calls: dict[str, Path] = {}
    for path in (p for each in patterns for p in files_below(audio_dir, each)):
        name = path.stem.lower()
        if calls.setdefault(name, path) != path:
            raise ValueError(
                f"{path} and {calls[name]} are both call {name}. Keep one."
            )
    if not calls:
        raise FileNotFoundError(
            f"{audio_dir}: no {' or '.join(patterns)} below this folder."
        )
    return dict(sorted(calls.items()))


def recordings(
    calls: dict[str, Path], wav_dir: Path, num_jobs: int = 1
) -> RecordingSet:
    """Write both sides of each call below `wav_dir` and return their recordings.

    An existing side of the right length is not written again. Ids are <call>-A and
    <call>-B, sorted; paths of sources begin with `wav_dir`.

    Raises:
        FileNotFoundError: a call is compressed, and sph2pipe is not installed.
        ValueError: a file is damaged, or does not have two channels.
    """
    from lhotse import RecordingSet

    def split(call: tuple[str, Path]) -> list[Recording]:
        return _split(*call, wav_dir)

    with ThreadPoolExecutor(num_jobs) as pool:
        found = tqdm(
            pool.map(split, calls.items()),
            desc=str(wav_dir),
            total=len(calls),
            unit="call",
            disable=None,
        )
        sides = [side for pair in found for side in pair]
    return RecordingSet.from_recordings(sorted(sides, key=lambda side: side.id))


def _split(name: str, path: Path, wav_dir: Path) -> list[Recording]:
    header = sphere.read_header(path)
    if header.channel_count != len(SIDES):
        raise ValueError(
            f"{path}: channel_count is {header.channel_count}, must be 2 for a call."
        )
    files = [wav_dir / f"{name}-{side}.wav" for side in SIDES]
    if not all(_is_there(file, header) for file in files):
        for file, samples in zip(files, _read(path, header).T):
            _write(file, samples, header.sample_rate)
    return [_recording(file, header) for file in files]


def _write(file: Path, samples: np.ndarray, rate: int) -> None:
    options = dict(samplerate=rate, format="WAV", subtype="ULAW")
    write_whole(file, lambda part: soundfile.write(part, samples, **options))


def _is_there(file: Path, header: sphere.Header) -> bool:
    return file.exists() and soundfile.info(file).frames == header.sample_count


def _read(path: Path, header: sphere.Header) -> np.ndarray:
    """The samples (sample_count, 2), int16."""
    source: Path | BytesIO = path
    if header.is_compressed:
        command = [sphere.sph2pipe(), "-f", "wav", "-p", str(path)]
        done = subprocess.run(command, capture_output=True)
        if done.returncode:
            raise ValueError(f"{shlex.join(command)} failed: {done.stderr.decode()}")
        source = BytesIO(done.stdout)
    try:
        samples = soundfile.read(source, dtype="int16", always_2d=True)[0]
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: {error}. Copy it again.") from error
    wanted = (header.sample_count, header.channel_count)
    if samples.shape != wanted:
        raise ValueError(
            f"{path}: has {samples.shape} samples, its header gives {wanted}. Copy it "
            "again from the distribution."
        )
    return samples


def _recording(file: Path, header: sphere.Header) -> Recording:
    from lhotse import Recording
    from lhotse.audio import AudioSource

    return Recording(
        id=file.stem,
        sources=[AudioSource("file", channels=[0], source=str(file))],
        sampling_rate=header.sample_rate,
        num_samples=header.sample_count,
        duration=header.sample_count / header.sample_rate,
    )


def utterance_id(side: str, begin: float | str, end: float | str) -> str:
    """The id of a part of a side: sw02001-A_000098-001156, times in 10 ms.

    Times are rounded, as Kaldi does for Switchboard (it truncates those of eval2000).
    """
    times = (int(100 * float(seconds) + 0.5) for seconds in (begin, end))
    return f"{side}_" + "-".join(f"{time:06d}" for time in times)


def require_sides(sides: Iterable[str], known: RecordingSet, where: Path) -> None:
    """Refuse transcripts of sides without audio.

    Raises:
        FileNotFoundError: names the first such side and their number.
    """
    lacking = sorted(set(sides) - set(known.ids))
    if lacking:
        raise FileNotFoundError(
            f"{where}: {len(lacking)} sides have a transcript but no audio, the first "
            f"is {lacking[0]}. Copy the missing calls, or accept the others with "
            "--check_counts false."
        )
