"""A small LibriSpeech: folders, names and files as distributed, synthetic speech.

LibriSpeech/{README,LICENSE,SPEAKERS,CHAPTERS,BOOKS}.TXT
LibriSpeech/<part>/<reader>/<chapter>/<reader>-<chapter>-<number>.flac
                                     /<reader>-<chapter>.trans.txt
"""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
# (reader, chapter, utterances) of each part: readers whose ids begin alike, which sort
# before or after each other with and without what follows them; two chapters of one.
PARTS = {
    "train-clean-100": [("19", "198", 2), ("196", "122150", 2), ("19", "227", 2)],
    "train-clean-360": [("14", "208", 2), ("1455", "134435", 1)],
    "train-other-500": [("20", "205", 2)],
    "dev-clean": [("84", "121123", 2), ("8842", "302196", 1)],
    "dev-other": [("116", "288045", 2)],
    "test-clean": [("61", "70968", 2)],
    "test-other": [("367", "130732", 1), ("3764", "168670", 1)],
}
TEXTS = [
    "HE BEGAN A CONFUSED COMPLAINT",
    "DON'T HE SAID",
    "GO",
    "THAT WAS THE FIRST OF THEM",
    "SHE BADE HIM GOOD DAY",
    "IT IS NOT MINE",
]


def write_tree(folder: Path) -> Path:
    """Write folder/LibriSpeech with an utterance of 0.5 to 1.4 s for each of PARTS.

    The texts go round through TEXTS. Returns folder/LibriSpeech.
    """
    corpus = folder / "LibriSpeech"
    corpus.mkdir(parents=True)
    (corpus / "README.TXT").write_text("1. General information\n")
    (corpus / "LICENSE.TXT").write_text("CC BY 4.0\n")
    (corpus / "BOOKS.TXT").write_text("; ID | TITLE\n")
    speakers = ["; Some pipe(|) separated metadata about all the speakers", ";"]
    speakers.append(";ID  |SEX| SUBSET           |MINUTES| NAME")
    chapters = [";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE"]
    rng = np.random.default_rng(0)
    for part, members in PARTS.items():
        for reader, chapter, number in members:
            speakers.append(f"{reader:<5}| F | {part:<17}| 25.03 | Made up")
            chapters.append(f"{chapter:<7}| {reader:<5}| 0.02 | {part} | 1 | 1 | One")
            _write_chapter(corpus / part, reader, chapter, number, rng)
    (corpus / "SPEAKERS.TXT").write_text("\n".join(speakers) + "\n")
    (corpus / "CHAPTERS.TXT").write_text("\n".join(chapters) + "\n")
    return corpus


def _write_chapter(
    part: Path, reader: str, chapter: str, number: int, rng: np.random.Generator
) -> None:
    folder = part / reader / chapter
    folder.mkdir(parents=True)
    lines = []
    for n in range(number):
        name = f"{reader}-{chapter}-{n:04d}"
        time = np.arange(int(RATE * rng.uniform(0.5, 1.4))) / RATE
        wave = 0.2 * np.sin(2 * np.pi * rng.uniform(100, 400) * time)
        wave += 0.05 * rng.standard_normal(len(wave))
        soundfile.write(folder / f"{name}.flac", wave, RATE, subtype="PCM_16")
        lines.append(f"{name} {TEXTS[(int(chapter) + n) % len(TEXTS)]}\n")
    (folder / f"{reader}-{chapter}.trans.txt").write_text("".join(lines))
