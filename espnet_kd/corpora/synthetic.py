"""A small corpus of synthetic speech: digit strings and commands, 25 words, 8 kHz.

No download: espeak-ng synthesises (see espeak.py), and noise is added at a known SNR. A
speaker is an accent with a timbre, a pitch and a tempo. Training, validation and test
have different timbres, so they do not share speakers.
"""

import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np

from espnet_kd.corpora import espeak, noise
from espnet_kd.corpora.sets import PARTS, Utterance

RATE = 8000
DIGITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]
COMMANDS = [
    "turn the {colour} light {state}",
    "turn the music {state}",
    "open the {thing}",
    "close the {thing}",
    "stop the music",
    "play {colour} {digit}",
]
SLOTS = {
    "colour": ["red", "green", "blue"],
    "state": ["on", "off"],
    "thing": ["door", "window"],
    "digit": DIGITS,
}
DIGIT_STRINGS = 0.6  # share of the utterances; the others are commands

ACCENTS = ["en-us", "en-gb-x-rp", "en-gb-scotland", "en-029"]
TIMBRES = {
    "train": [
        "f1",
        "f3",
        "f4",
        "f5",
        "m1",
        "m2",
        "m4",
        "m5",
        "m6",
        "m8",
        "Annie",
        "Lee",
        "Michael",
        "adam",
    ],
    "valid": ["linda", "Alex"],
    "test": ["f2", "m3", "m7", "steph"],
}
BABBLE_SENTENCES = 20


class Speaker(NamedTuple):
    """A voice of espeak-ng with its settings."""

    id: str
    voice: str
    pitch: int
    rate: int


def speakers(part: str) -> list[Speaker]:
    """The speakers of a part; the two training pools share theirs."""
    group = part if part in ("valid", "test") else "train"
    return [_speaker(accent, t) for t in TIMBRES[group] for accent in ACCENTS]


def _speaker(accent: str, timbre: str) -> Speaker:
    voice = f"{accent}+{timbre}"
    # Drawn from the name, not the seed: a speaker sounds the same in every corpus.
    rng = np.random.default_rng(zlib.crc32(voice.encode()))
    name = voice.replace("+", "-").lower()
    return Speaker(name, voice, int(rng.integers(35, 66)), int(rng.integers(140, 201)))


def sentence(rng: np.random.Generator) -> str:
    """Draw a string of 2-5 digits or a command."""
    if rng.random() < DIGIT_STRINGS:
        return " ".join(rng.choice(DIGITS, size=rng.integers(2, 6)))
    fillers: dict[str, str] = {k: str(rng.choice(v)) for k, v in SLOTS.items()}
    return str(rng.choice(COMMANDS)).format(**fillers)


def utterances(
    part: str, number: int, *, snr: tuple[float, float] = (5.0, 20.0), seed: int = 0
) -> Iterator[Utterance]:
    """The utterances of a part; each depends only on the seed and its number."""
    people = speakers(part)
    stream = PARTS.index(part)
    with closing(espeak.Espeak()) as synthesiser:
        rng = np.random.default_rng([seed, stream])
        babble = [
            _say(synthesiser, people[rng.integers(len(people))], sentence(rng))
            for _ in range(BABBLE_SENTENCES)
        ]
        for index in range(number):
            rng = np.random.default_rng([seed, stream, index])
            speaker = people[rng.integers(len(people))]
            text = sentence(rng)
            speech = _say(synthesiser, speaker, text)
            snr_db = rng.uniform(*snr)
            kind, sound = noise.draw(rng, len(speech), babble)
            yield Utterance(
                id=f"{speaker.id}-{part}-{index:05d}",
                speaker=speaker.id,
                text=text,
                samples=noise.mix_at_snr(speech, sound, snr_db),
                noise=kind,
                snr_db=snr_db,
            )


def _say(synthesiser: espeak.Espeak, speaker: Speaker, text: str) -> np.ndarray:
    from scipy.signal import resample_poly  # SciPy is slow to import

    samples = synthesiser.say(text, speaker.voice, speaker.pitch, speaker.rate)
    return resample_poly(samples, RATE, espeak.RATE)
