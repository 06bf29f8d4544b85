"""Problems of a data set, utterance by utterance, with remedies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from espnet_kd.data.audio import AudioError, Header, entry, read_header
from espnet_kd.data.kaldi import PathLike, parse_segment, read_table

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import MonoCut, Recording

# Seconds by which times may be off, as they are often rounded. Lhotse's own tolerance,
# 0.5 s, would let whole words pass.
TOLERANCE = 0.025
FIX = "Run utils/fix_data_dir.sh or repair the line."
RECOUNT = "Remove utt2num_samples, utt2dur, reco2num_samples and reco2dur."
TABLES = ("wav.scp", "segments", "text", "utt2spk", "utt2num_samples", "utt2dur")


class Problem(NamedTuple):
    """One fault of a data set."""

    utt_id: str  # utterance or recording; "" for a whole file
    file: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.utt_id}" if self.utt_id else self.file
        return f"{where}: {self.reason}. {self.remedy}"


def listing(problems: list[Problem], limit: int) -> str:
    """The first `limit` problems, one per line, and the number of further ones."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


# ---------------------------------------------------------------- Kaldi data folders


def validate_kaldi(data_dir: PathLike, check_audio: bool = True) -> list[Problem]:
    """List every problem of a Kaldi data folder; an empty list means none.

    Checked: every table sorted, without duplicates and without empty values; the same
    utterances in all; segments within their recordings; with `check_audio` each
    recording exists, has one channel and the length given in the tables (from its
    header, no audio is decoded; a piped command is run). Without a `text` file the
    data is unlabelled, which is not a problem.
    """
    data_dir = Path(data_dir)
    if not (data_dir / "wav.scp").is_file():
        remedy = "Give the folder of a Kaldi data set, or make it with local/data.sh."
        return [Problem("", str(data_dir / "wav.scp"), "no such file", remedy)]

    problems: list[Problem] = []
    tables: dict[str, dict[str, str]] = {}
    for name in TABLES:
        if (data_dir / name).is_file():
            tables[name], found = _read(data_dir / name)
            problems += found
    problems += _same_utterances(data_dir, tables)
    segments, found = _segments(data_dir, tables)
    problems += found
    headers: dict[str, Header] = {}
    if check_audio:
        headers, found = _headers(data_dir / "wav.scp", tables["wav.scp"])
        problems += found
    problems += _lengths(data_dir, tables, segments, headers)
    return problems


def _read(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """A table and the problems of its lines."""
    rows: dict[str, str] = {}
    problems, unsorted, previous = [], False, ""
    for key, value in read_table(path):
        if key in rows:
            problems.append(Problem(key, str(path), "duplicate id", FIX))
        elif key.encode() < previous.encode() and not unsorted:
            unsorted = True
            reason = f"not sorted: comes after {previous} (order of LC_ALL=C)"
            problems.append(Problem(key, str(path), reason, FIX))
        if not value:
            reason = "empty text" if path.name == "text" else "nothing after the id"
            problems.append(Problem(key, str(path), reason, FIX))
        rows.setdefault(key, value)
        previous = key
    return rows, problems


def _same_utterances(
    data_dir: Path, tables: dict[str, dict[str, str]]
) -> Iterator[Problem]:
    """Utterances that are in one table but not in another."""
    main = "segments" if "segments" in tables else "wav.scp"
    if "utt2spk" not in tables:
        remedy = "Write it; where speakers are unknown, each utterance is its own."
        yield Problem("", str(data_dir / "utt2spk"), "no such file", remedy)
    for name in [name for name in tables if name not in ("wav.scp", "segments")]:
        for utt_id in sorted(tables[main].keys() ^ tables[name].keys()):
            reason = f"here but not in {main}"
            if utt_id in tables[main]:
                reason = f"in {main} but not here"
            yield Problem(utt_id, str(data_dir / name), reason, FIX)


Segments = dict[str, tuple[str, float, float]]


def _segments(
    data_dir: Path, tables: dict[str, dict[str, str]]
) -> tuple[Segments, list[Problem]]:
    """utterance -> (recording, start s, end s or -1), and invalid lines."""
    if "segments" not in tables:
        return {utt_id: (utt_id, 0.0, -1.0) for utt_id in tables["wav.scp"]}, []
    path = data_dir / "segments"
    segments: Segments = {}
    problems = []
    for utt_id, value in tables["segments"].items():
        try:
            recording, start, end = parse_segment(path, utt_id, value)
        except ValueError:
            reason = f"'{value}' is not '<recording> <start> <end>'"
            problems.append(Problem(utt_id, str(path), reason, FIX))
            continue
        if recording not in tables["wav.scp"]:
            reason = f"its recording {recording} is not in wav.scp"
        elif start < 0 or (end <= start and end != -1):
            reason = f"from {start} s to {end} s is not a valid time span"
        else:
            segments[utt_id] = recording, start, end
            continue
        problems.append(Problem(utt_id, str(path), reason, FIX))
    return segments, problems


def _headers(
    wav_scp: Path, locations: dict[str, str]
) -> tuple[dict[str, Header], list[Problem]]:
    """The header of each recording, and recordings without one."""
    headers, problems = {}, []
    for recording, location in tqdm(
        locations.items(), desc="audio headers", disable=None
    ):
        try:
            headers[recording] = read_header(location)
        except AudioError as error:
            problems.append(
                Problem(recording, str(wav_scp), error.reason, error.remedy)
            )
    return headers, problems


def _lengths(
    data_dir: Path,
    tables: dict[str, dict[str, str]],
    segments: Segments,
    headers: dict[str, Header],
) -> Iterator[Problem]:
    """Segments beyond their recording's end, tables that contradict the audio."""
    for utt_id, (recording, start, end) in segments.items():
        if recording not in headers:
            continue
        rate, num_samples = headers[recording]
        last = num_samples / rate
        if start >= last or end > last + TOLERANCE:
            reason = f"ends at {end} s, its recording {recording} at {last:.3f} s"
            yield Problem(utt_id, str(data_dir / "segments"), reason, FIX)
            continue
        seconds = (last if end == -1 else min(end, last)) - start
        # A segment's ends may each be rounded by a sample; a file's length may not.
        slack = 2 if "segments" in tables else 0
        for name, unit, actual, allowed in (
            ("utt2num_samples", "samples", round(seconds * rate), slack),
            ("utt2dur", "s", round(seconds, 4), TOLERANCE),
        ):
            stated = tables.get(name, {}).get(utt_id)
            if stated is not None and not _near(stated, actual, allowed):
                reason = f"duration mismatch: {stated} {unit}, the audio has {actual}"
                yield Problem(utt_id, str(data_dir / name), reason, RECOUNT)


def _near(stated: str, actual: float, allowed: float) -> bool:
    try:
        return abs(float(stated) - actual) <= allowed
    except ValueError:
        return False


# ---------------------------------------------------------------- Lhotse cuts


def validate_cuts(cuts: Iterable[MonoCut], check_audio: bool = True) -> list[Problem]:
    """List every problem of a set of cuts, which is read once, one cut at a time.

    Lhotse's own checks of a cut, and: ids are unique; one supervision each, with text
    or (unlabelled) None; the cut is within its recording; with `check_audio` a
    recording exists and has the length given in its manifest (from the header).
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    checked: dict[str, Problem | None] = {}
    for cut in tqdm(cuts, desc="cuts", disable=None):
        problems += _check_cut(cut, seen)
        seen.add(cut.id)
        recording = getattr(cut, "recording", None)
        if check_audio and recording is not None and recording.id not in checked:
            checked[recording.id] = _check_recording(recording)
        if recording is not None and checked.get(recording.id):
            problems.append(checked[recording.id]._replace(utt_id=cut.id))
    return problems


def _check_cut(cut: MonoCut, seen: set[str]) -> Iterator[Problem]:
    from lhotse.qa import validate as lhotse_validate

    def problem(reason: str, remedy: str) -> Problem:
        return Problem(cut.id, "cuts", reason, remedy)

    if cut.id in seen:
        yield problem("duplicate id", "Give each cut its own id.")
    try:
        lhotse_validate(cut)
    except AssertionError as error:
        yield problem(str(error), "Make the manifest again from its source.")
    if len(cut.supervisions) != 1:
        number = len(cut.supervisions)
        yield problem(
            f"{number} supervisions", "cuts.trim_to_supervisions() gives one."
        )
    if any(s.text is not None and not s.text.strip() for s in cut.supervisions):
        yield problem("empty text", "Write the text, None if unlabelled, or drop it.")
    recording = getattr(cut, "recording", None)
    if recording is not None:
        over = cut.end - recording.duration
        if over > TOLERANCE:
            reason = f"ends {over:.3f} s after its recording {recording.id}"
            yield problem(reason, "Shorten it: cut.truncate(duration=...).")


def _check_recording(recording: Recording) -> Problem | None:
    """The problem of a recording's audio file, if any."""
    if recording.transforms or recording.num_channels != 1:
        return None  # the header does not show their result
    source = recording.sources[0]
    if source.type not in ("file", "command"):
        return None
    location = entry(source)
    try:
        header = read_header(location)
    except AudioError as error:
        return Problem("", location, error.reason, error.remedy)
    stated = Header(recording.sampling_rate, recording.num_samples)
    if header == stated:
        return None
    reason = (
        f"duration mismatch: recording {recording.id} has {stated.num_samples} samples "
        f"at {stated.rate} Hz, the audio {header.num_samples} at {header.rate} Hz"
    )
    return Problem("", location, reason, "Make the manifest again from its source.")
