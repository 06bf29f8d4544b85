"""Hub5 2000 English, the usual test of Switchboard models: audio LDC2002S09, references
LDC2002T43.

    <audio>/hub5e_00/english/hub5e_00.pem                en_4156 A who 301.85 302.48
    <audio>/hub5e_00/english/en_4156.sph                 20 CallHome calls (en_)
    <audio>/hub5e_00/english/sw_4390.sph                 20 Switchboard calls (sw_)
    <transcripts>/reference/hub5e00.english.000405.stm   what is scored, by segment
    <transcripts>/reference/en20000405_hub5.glm          which spellings are equal

Both folders are searched, so it does not matter what was unpacked where. The set is
that of Kaldi's and ESPnet's recipes: the segments of the pem, each extended by 0.1 s at
either end where possible, without those that the stm excludes from scoring. Scores come
from the stm (`espnet_kd.report.stm_scoring`); `text` holds its plain words.

`lhotse prepare eval2000` reads other transcripts (one file per call), whose segments
are not the scored ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from espnet_kd.corpora.telephone import (
    files_below,
    find_calls,
    recordings,
    require_sides,
    utterance_id,
)

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import RecordingSet, SupervisionSet

CALLS = 40  # 80 sides, as Kaldi's eval2000_data_prep.sh counts them
PEM = "hub5e_00.pem"
STM = "hub5e00.english.000405.stm"
GLM = "en20000405_hub5.glm"
MARGIN = 0.1  # s, of audio before and after a segment
HESITATION = "%hesitation"  # the glm maps "uh" and the like to it; not scored
LEFT_OUT = "IGNORE_TIME_SEGMENT_IN_SCORING"
SUBSETS = {"swbd": "sw_", "callhm": "en_"}  # name -> how the calls' names begin

# Parts of the distributed stm that sclite does not accept; repaired as by Kaldi.
REPAIRS = (("((", "("), ("<B_ASIDE>", ""), ("<E_ASIDE>", ""))


class Segment(NamedTuple):
    """A line of a stm file."""

    call: str  # sw_4390
    channel: str  # A or B
    speaker: str
    begin: str  # s, as written
    end: str
    label: str  # <O,sw,F,sw-F>, may be empty
    transcript: str

    @property
    def side(self) -> str:
        return f"{self.call}-{self.channel}"

    @property
    def id(self) -> str:
        """The id of this segment's utterance, in Switchboard's form."""
        return utterance_id(self.side, self.begin, self.end)


def read_stm(path: Path) -> list[Segment]:
    """Read the segments of a stm file, including those that are not scored.

    Format: NIST's sclite, `<call> <channel> <speaker> <begin> <end> [<label>] words`;
    `;;` begins a comment.

    Raises:
        ValueError: at a line that is not of this format, or a duplicate segment.
    """
    segments: dict[str, Segment] = {}
    # Latin 1 decodes any byte.
    lines = repaired(path.read_text(encoding="latin-1")).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        match = re.fullmatch(r"\s*" + r"(\S+)\s+" * 4 + r"(\S+)\s*(<\S+>)?(.*)", line)
        try:
            segment = Segment(*(field or "" for field in match.groups()))
            key = segment.id
        except (AttributeError, ValueError):
            raise ValueError(
                f"{path}: line {number} is not '<call> <channel> <speaker> <begin> "
                f"<end> <label> <words>': {line!r}"
            ) from None
        if key in segments:
            raise ValueError(f"{path}: line {number}: segment {key} occurs twice.")
        segments[key] = segment._replace(transcript=segment.transcript.strip())
    return list(segments.values())


def scored(segments: Iterable[Segment]) -> list[Segment]:
    """The segments that are scored."""
    return [s for s in segments if not s.transcript.startswith(LEFT_OUT)]


def plain_words(transcript: str) -> str:
    """The lower-case words of a stm transcript, one of its allowed readings.

    Of `{ A / B }` the first; optional words are kept. A hesitation is `%hesitation`,
    and so is a segment without words: Kaldi's folders have no empty text.
    """
    found = 1
    while found:  # from the innermost braces on
        transcript, found = re.subn(r"\{([^{}/]*)[^{}]*\}", r"\1", transcript)
    words = re.sub(r"<[^>]*>|[(){}@]", " ", transcript).lower().split()
    return " ".join(words) or HESITATION


class Eval2000(NamedTuple):
    """The set and the two files used to score it."""

    recordings: RecordingSet
    supervisions: SupervisionSet
    stm: str
    glm: str


def prepare_eval2000(
    audio_dir: Path,
    transcripts_dir: Path,
    wav_dir: Path,
    *,
    partial: bool = False,
    num_jobs: int = 1,
) -> Eval2000:
    """Make the manifests of eval2000; writes the sides' wav files.

    A segment that begins after the end of its side's audio is left out with a message.

    Args:
        audio_dir: LDC2002S09.
        transcripts_dir: LDC2002T43.
        wav_dir: where each side's audio is written (`telephone.recordings`).
        partial: accept another number of calls.
        num_jobs: calls read in parallel.

    Raises:
        FileNotFoundError: a file of the distribution is missing.
        ValueError: another number of calls than the set has (unless `partial`), or pem
            and stm do not have the same segments.
    """
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet

    pem, stm = _find(audio_dir, PEM), _find(transcripts_dir, STM)
    glm = _find(transcripts_dir, GLM)
    calls = find_calls(pem.parent, *(f"{begin}*.sph" for begin in SUBSETS.values()))
    if not partial and len(calls) != CALLS:
        raise ValueError(
            f"{pem.parent}: {len(calls)} calls, eval2000 has {CALLS}. --check_counts "
            "false accepts a part of it."
        )
    segments = read_stm(stm)
    stretches = _read_pem(pem)
    different = {segment.id for segment in segments} ^ stretches.keys()
    if different:
        raise ValueError(
            f"{pem} and {stm} differ in {len(different)} segments, the first is "
            f"{min(different)}. Use both from the distribution."
        )
    sides = recordings(calls, wav_dir, num_jobs)
    require_sides((segment.side for segment in segments), sides, stm)
    lengths = {side.id: side.duration for side in sides}
    extended = extend(stretches, lengths)
    supervisions = [
        SupervisionSegment(
            id=segment.id,
            recording_id=segment.side,
            start=extended[segment.id][0],
            duration=round(
                extended[segment.id][1] - extended[segment.id][0], ndigits=8
            ),
            text=plain_words(segment.transcript),
            language="English",
            speaker=segment.side,
        )
        for segment in scored(segments)
        if _has_audio(segment, lengths[segment.side])
    ]
    wanted = {segment.recording_id for segment in supervisions}
    return Eval2000(
        RecordingSet.from_recordings(side for side in sides if side.id in wanted),
        SupervisionSet.from_segments(sorted(supervisions, key=lambda s: s.id)),
        repaired(stm.read_text(encoding="latin-1")),
        glm.read_text(encoding="latin-1"),
    )


def _has_audio(segment: Segment, length: float) -> bool:
    """Whether a segment begins before its side ends; prints a message if not."""
    if float(segment.begin) < length:
        return True
    print(
        f"{segment.id} is left out: it begins at {segment.begin} s, its side has only "
        f"{length} s of audio. Scoring counts its words as deletions."
    )
    return False


def _find(folder: Path, name: str) -> Path:
    found = files_below(folder, name)
    if not found:
        raise FileNotFoundError(
            f"{folder}: no {name} below this folder. Give the folder of LDC2002S09 "
            "(audio, pem) as EVAL2000 and of LDC2002T43 (stm, glm) as "
            "EVAL2000_TRANSCRIPTS."
        )
    return found[0]


def repaired(text: str) -> str:
    """The text of a stm file without the marks that scoring does not accept."""
    for wrong, right in REPAIRS:
        text = text.replace(wrong, right)
    return text


class Stretch(NamedTuple):
    """A part of a side, in seconds."""

    side: str
    begin: float
    end: float


def _read_pem(path: Path) -> dict[str, Stretch]:
    """Utterance id -> its stretch; lines `<call> <channel> <speaker> <begin> <end>`."""
    stretches = {}
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith(";;"):
            continue
        try:
            call, channel, _, begin, end = line.split()
            stretch = Stretch(f"{call}-{channel}", float(begin), float(end))
        except ValueError:
            raise ValueError(
                f"{path}: line {number} is not '<call> <channel> <speaker> <begin> "
                f"<end>': {line!r}"
            ) from None
        stretches[utterance_id(*stretch)] = stretch  # some copies have duplicates
    return stretches


def extend(
    stretches: dict[str, Stretch], lengths: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Utterance id -> (begin, end), extended by up to MARGIN at either end.

    Two neighbours share the time between them; if they overlap they are not extended.
    No stretch goes beyond its side.

    Args:
        lengths: of each side, in s.
    """
    by_side = defaultdict(list)
    for name, stretch in stretches.items():
        by_side[stretch.side].append((stretch.begin, stretch.end, name))
    return {
        name: (begin, end)
        for side, members in by_side.items()
        for name, begin, end in _extended(sorted(members), lengths[side])
    }


def _extended(
    members: list[tuple[float, float, str]], length: float
) -> Iterator[tuple[str, float, float]]:
    gaps = [
        min(MARGIN, max(0.0, (after[0] - before[1]) / 2))
        for before, after in zip(members, members[1:])
    ]
    for (begin, end, name), before, after in zip(
        members, [MARGIN, *gaps], [*gaps, MARGIN]
    ):
        yield name, round(max(0.0, begin - before), 4), round(
            min(length, end + after), 4
        )
