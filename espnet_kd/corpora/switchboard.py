"""Switchboard-1 Release 2 (LDC97S62) with Mississippi State's transcripts.

    <audio>/swb1_d1/data/sw02001.sph                             a call, two channels
    <transcripts>/20/2001/sw2001A-ms98-a-trans.text              its side A
    <transcripts>/sw-ms98-dict.text                              their dictionary

The transcripts (ms98) are free: switchboard_word_alignments.tar.gz of openslr.org/5.
Their lines are `sw2001A-ms98-a-0001 0.000000 0.977625 [silence]`. The sets are those
of Kaldi and ESPnet:

    all utterances, sorted --> train_dev      the first 4000
                           \\-> train_nodup    the others, a text at most ~300 times

Of `lhotse prepare switchboard` only the reading of transcripts is used: it decodes
every call with sph2pipe to find its length, calls both speakers A, drops words after
a [silence], and does not normalise the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from espnet_kd.corpora.switchboard_text import DICTIONARY, normalize, read_acronyms
from espnet_kd.corpora.telephone import (
    SIDES,
    files_below,
    find_calls,
    recordings,
    require_sides,
    utterance_id,
)

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet

    Manifests = dict[str, RecordingSet | SupervisionSet]

FILES = "sw0*.sph"
# Kaldi's swbd1_data_prep.sh: copies of LDC97S62 differ by three calls.
CALLS = (2435, 2438)
DEV_SIZE = 4000
REPEATS = 300
# Kaldi's utils/data/remove_dup_utts.sh draws with this generator: the same utterances.
STEP, MODULUS = 103349, 71147


def prepare_switchboard(
    audio_dir: Path,
    transcripts_dir: Path,
    wav_dir: Path,
    *,
    partial: bool = False,
    dev_size: int = DEV_SIZE,
    num_jobs: int = 1,
) -> dict[str, Manifests]:
    """Make the manifests of train_dev and train_nodup; writes the sides' wav files.

    Args:
        audio_dir: LDC97S62, however its discs are laid out.
        transcripts_dir: swb_ms98_transcriptions, or its parent.
        wav_dir: where each side's audio is written (`telephone.recordings`).
        partial: accept a part of the corpus.
        dev_size: utterances of train_dev.
        num_jobs: calls read in parallel.

    Returns:
        for each set {"recordings": RecordingSet, "supervisions": SupervisionSet}.

    Raises:
        FileNotFoundError: no audio, no transcripts or no dictionary; a transcript
            without audio (unless `partial`).
        ValueError: another number of calls than the corpus has (unless `partial`), a
            damaged file, or no utterance left for train_nodup.
    """
    calls = find_calls(audio_dir, FILES)
    if not partial and len(calls) not in CALLS:
        raise ValueError(
            f"{audio_dir}: {len(calls)} calls, LDC97S62 has {CALLS[0]} or {CALLS[1]}. "
            "--check_counts false accepts a part of it."
        )
    transcripts = _transcripts(transcripts_dir)
    sides = recordings(calls, wav_dir, num_jobs)
    if not partial:
        require_sides(transcripts, sides, transcripts_dir)
    found = sorted(
        _supervisions(transcripts, sides, _acronyms(transcripts_dir)),
        key=lambda segment: segment.id,
    )
    sets = {
        "train_dev": found[:dev_size],
        "train_nodup": limit_repeats(found[dev_size:]),
    }
    if not sets["train_nodup"]:
        raise ValueError(
            f"{transcripts_dir}: {len(found)} utterances, train_dev takes {dev_size}: "
            "none is left for train_nodup."
        )
    return {name: _manifests(segments, sides) for name, segments in sets.items()}


def _transcripts(folder: Path) -> dict[str, Path]:
    """Side (sw02001-A) -> its transcript."""
    found = {}
    for path in files_below(folder, "sw*-trans.text"):
        name = path.name.split("-")[0]  # sw2001A
        found[f"sw0{name[2:-1]}-{name[-1]}"] = path
    if not found:
        raise FileNotFoundError(
            f"{folder}: no sw*-trans.text below this folder. Unpack "
            "switchboard_word_alignments.tar.gz (openslr.org/5) there."
        )
    return found


def _acronyms(folder: Path) -> dict[str, str]:
    paths = files_below(folder, DICTIONARY)
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no {DICTIONARY} below this folder; it comes with the "
            "transcripts and lists the acronyms."
        )
    return read_acronyms(paths[0])


def _supervisions(
    transcripts: dict[str, Path], sides: RecordingSet, acronyms: dict[str, str]
) -> Iterator[SupervisionSegment]:
    """The utterances that have a word or a noise, and audio."""
    from lhotse.recipes.switchboard import make_segments

    known = {side.id: side for side in sides}
    bar = tqdm(transcripts.items(), desc="transcripts", unit="side", disable=None)
    for name, path in bar:
        if name not in known:
            continue
        channel = SIDES.index(name[-1])
        for segment in make_segments(path, known[name], channel, omit_silence=False):
            text = normalize(segment.text, acronyms)
            if text:
                yield _utterance(segment, known[name].duration, text, path)


def _utterance(
    segment: SupervisionSegment, duration: float, text: str, path: Path
) -> SupervisionSegment:
    """A segment of a transcript with Kaldi's id, its times rounded as in the id."""
    from lhotse.utils import fastcopy

    if segment.start >= duration:
        raise ValueError(
            f"{path}: {segment.id} begins at {segment.start} s, its side has only "
            f"{duration} s of audio. Copy the call again from the distribution."
        )
    side = segment.recording_id
    name = utterance_id(side, segment.start, segment.end)
    begin, end = (int(time) / 100 for time in name.rpartition("_")[2].split("-"))
    return fastcopy(
        segment,
        id=name,
        start=begin,
        duration=round(min(end, duration) - begin, ndigits=8),
        channel=0,
        speaker=side,
        text=text,
    )


def limit_repeats(
    segments: list[SupervisionSegment], most: int = REPEATS
) -> list[SupervisionSegment]:
    """Keep about `most` utterances of a text that occurs more often ("uh-huh")."""
    counts = Counter(segment.text for segment in segments)
    state = 0
    kept = []
    for segment in segments:
        number = counts[segment.text]
        if number >= most:
            state = (state + STEP) % MODULUS
            if state / MODULUS >= most / number:
                continue
        kept.append(segment)
    return kept


def _manifests(segments: list[SupervisionSegment], sides: RecordingSet) -> Manifests:
    from lhotse import RecordingSet, SupervisionSet

    wanted = {segment.recording_id for segment in segments}
    return {
        "recordings": RecordingSet.from_recordings(s for s in sides if s.id in wanted),
        "supervisions": SupervisionSet.from_segments(segments),
    }
