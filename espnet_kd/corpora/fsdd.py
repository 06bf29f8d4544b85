"""Connected digits from the Free Spoken Digit Dataset (real speech, 8 kHz).

An utterance is 2-7 single recordings of one speaker with gaps between them, in noise
at a known SNR. The recordings of a word are numbered ("takes"); each take is used in
one part only, so that no recording is in two parts:

    takes 0-4 test | 5-7 valid | 8-28 labelled pool | 29-49 unlabelled pool

Takes 0-4 are the data set's own test part. The babble and the speech-shaped noise of
a part are also made from its own recordings. Recipe: egs/fsdd.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from espnet_kd.corpora import noise
from espnet_kd.corpora.sets import PARTS, Utterance

RATE = 8000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TAKES = {
    "test": range(5),
    "valid": range(5, 8),
    "labelled": range(8, 29),
    "unlabelled": range(29, 50),
}
LONGEST = 1.2  # seconds kept of a recording; the few longer ones end in silence

# speaker -> digit -> recordings (samples,), each of RMS 1
Recordings = dict[str, list[list[np.ndarray]]]


def load_recordings(fsdd_dir: Path, part: str) -> Recordings:
    """Read the recordings of a part of TAKES.

    Raises:
        FileNotFoundError: if the data set, or every take of a digit, is missing.
        ValueError: if a file is not mono at 8 kHz.
    """
    found: dict[str, list[list[np.ndarray]]] = {}
    for path, digit, speaker, take in _files(fsdd_dir):
        if take in TAKES[part]:
            digits = found.setdefault(speaker, [[] for _ in WORDS])
            digits[digit].append(_read(path))
    for speaker, digits in found.items():
        if not all(digits):
            raise FileNotFoundError(
                f"{fsdd_dir}/recordings: speaker {speaker} has no recordings of digit "
                f"{digits.index([])} among takes {TAKES[part]}. {REMEDY}"
            )
    if not found:
        raise FileNotFoundError(
            f"{fsdd_dir}/recordings: no files for part '{part}'. {REMEDY}"
        )
    return found


REMEDY = (
    "Clone the public repository Jakobovski/free-spoken-digit-dataset from GitHub "
    "(git clone --depth 1) and give its folder as FSDD in db.sh or as --fsdd_dir."
)


def _files(fsdd_dir: Path) -> Iterator[tuple[Path, int, str, int]]:
    """Yield (path, digit, speaker, take) of <digit>_<speaker>_<take>.wav, sorted."""
    folder = Path(fsdd_dir) / "recordings"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. {REMEDY}")
    for path in sorted(folder.glob("*_*_*.wav")):
        digit, speaker, take = path.stem.split("_")
        yield path, int(digit), speaker, int(take)


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path)
    if rate != RATE or samples.ndim != 1:
        raise ValueError(
            f"{path}: {rate} Hz, shape {samples.shape}; must be mono at {RATE} Hz. "
            "Clone the data set again."
        )
    samples = samples[: int(LONGEST * RATE)]
    return samples / noise.rms(samples)


def utterances(
    recordings: Recordings,
    part: str,
    number: int,
    *,
    snr: tuple[float, float] = (0.0, 20.0),
    seed: int = 0,
) -> Iterator[Utterance]:
    """The utterances of a part; each depends only on the seed and its number."""
    from scipy.signal import resample  # SciPy is slow to import

    speakers = sorted(recordings)
    everything = [r for s in speakers for digit in recordings[s] for r in digit]
    for index in range(number):
        rng = np.random.default_rng([seed, PARTS.index(part), index])
        speaker = speakers[index % len(speakers)]
        digits = rng.integers(len(WORDS), size=rng.integers(2, 8))
        speech = _connect(rng, digits, recordings[speaker])
        if part in ("labelled", "unlabelled"):  # test and valid keep their true tempo
            speech = resample(speech, round(len(speech) / rng.uniform(0.9, 1.1)))
        snr_db = rng.uniform(*snr)
        kind, sound = noise.draw(rng, len(speech), everything)
        yield Utterance(
            id=f"{speaker}-{part}-{index:05d}",
            speaker=speaker,
            text=" ".join(WORDS[digit] for digit in digits),
            samples=noise.mix_at_snr(speech, sound, snr_db),
            noise=kind,
            snr_db=snr_db,
        )


def _connect(
    rng: np.random.Generator, digits: np.ndarray, takes: list[list[np.ndarray]]
) -> np.ndarray:
    """One take of each digit, at slightly varied levels, with silence between."""
    pieces = [_silence(rng, 0.05, 0.15)]
    for place, digit in enumerate(digits):
        if place:
            pieces.append(_silence(rng, 0.0, 0.15))
        take = takes[digit][rng.integers(len(takes[digit]))]
        pieces.append(take * 10 ** (rng.uniform(-3, 3) / 20))
    pieces.append(_silence(rng, 0.05, 0.15))
    return np.concatenate(pieces)


def _silence(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return np.zeros(round(rng.uniform(low, high) * RATE))
