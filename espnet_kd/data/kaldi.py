"""Kaldi data folders <-> Lhotse cuts, one utterance at a time.

    wav.scp          <recording> <file | command "|" | archive:offset>
    segments         <utterance> <recording> <start s> <end s>   only in long recordings
    text             <utterance> <words>                absent: audio is unlabelled
    utt2spk, spk2utt <utterance> <speaker>
    utt2num_samples  <utterance> <samples>
    utt2dur          <utterance> <seconds>              if given, no audio is opened
    reco2num_samples, reco2dur                            the same beside `segments`

Without `segments` an utterance is a whole recording with the same id. Cut, supervision
and utterance share their id. Paths are kept as written, so relative ones are relative
to the recipe folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espnet_kd.data.audio import AudioError, audio_source, entry, read_header
from espnet_kd.data.files import write_text

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import CutSet, MonoCut, Recording

PathLike = str | Path

# Decimals of seconds, to which Lhotse itself rounds.
DIGITS = 8
# utt2dur is often rounded to milliseconds; the true rate is one of these.
COMMON_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
# Tables that are removed unless written: an older one would be wrong.
OPTIONAL_TABLES = ("segments", "reco2num_samples", "reco2dur", "text")


class _Table:
    """A sorted Kaldi table, read line by line in step with others.

    Rows skipped on the way to a key are kept in memory, so a table in another order is
    read correctly too; a sorted one never holds more than one row.
    """

    def __init__(self, path: Path, keep: bool = False):
        self.path = path
        self.rows = read_table(path) if path.is_file() else iter(())
        self.waiting: dict[str, str] = {}
        self.keep = keep

    def get(self, key: str) -> str | None:
        """The value of `key`, or None. Without `keep`, each value is returned once."""
        if key not in self.waiting:
            for row_key, value in self.rows:
                self.waiting[row_key] = value
                if row_key == key:
                    break
        if self.keep:
            return self.waiting.get(key)
        return self.waiting.pop(key, None)


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, rest of the line) of a Kaldi table; blank lines are skipped."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            fields = line.split(maxsplit=1)
            if fields:
                yield fields[0], fields[1].strip() if len(fields) > 1 else ""


def write_table(path: PathLike, rows: Iterable[tuple[str, str]]) -> None:
    """Write (key, value) rows in C locale order, completely or not at all."""
    # Kaldi sorts bytes; so does Python on UTF-8 keys.
    ordered = sorted(rows, key=lambda row: row[0].encode("utf-8"))
    lines = (f"{key} {value}".rstrip() + "\n" for key, value in ordered)
    write_text(path, "".join(lines))


# ---------------------------------------------------------------- Kaldi -> Lhotse


def cuts_from_kaldi(data_dir: PathLike, sampling_rate: int | None = None) -> CutSet:
    """Open a Kaldi data folder as a lazy CutSet, one cut per utterance.

    No audio is decoded. Lengths come from utt2num_samples / utt2dur / reco2dur if
    present, else from the header of each file (a piped command has to run for it).

    Args:
        data_dir: folder with at least wav.scp.
        sampling_rate: of the audio, in Hz. None: from utt2num_samples and utt2dur,
            else from the headers; with utt2num_samples alone, from the first header.

    Raises:
        FileNotFoundError: if wav.scp is missing.
        ValueError: while iterating, at a malformed line or a duplicate utterance, and
            if a header is needed but the audio is missing, unreadable or has several
            channels.
    """
    from lhotse import CutSet

    data_dir = Path(data_dir)
    if not (data_dir / "wav.scp").is_file():
        raise FileNotFoundError(
            f"{data_dir}/wav.scp: no such file. Give the folder of a Kaldi data set, "
            "for example data/train, or make it with local/data.sh."
        )
    return CutSet(_KaldiCuts(data_dir, sampling_rate))


class _KaldiCuts:
    """The cuts of a folder, read again at each iteration (picklable for workers)."""

    def __init__(self, data_dir: Path, sampling_rate: int | None):
        self.data_dir = data_dir
        self.sampling_rate = sampling_rate

    def __iter__(self) -> Iterator[MonoCut]:
        from lhotse import MonoCut, SupervisionSegment

        texts = _Table(self.data_dir / "text")
        speakers = _Table(self.data_dir / "utt2spk")
        previous = None
        for utt_id, recording, start, duration in self._utterances():
            if utt_id == previous:
                raise ValueError(
                    f"{self.data_dir}: utterance {utt_id} occurs twice. Remove a line "
                    "(utils/fix_data_dir.sh)."
                )
            previous = utt_id
            yield MonoCut(
                id=utt_id,
                start=start,
                duration=duration,
                channel=0,
                recording=recording,
                supervisions=[
                    SupervisionSegment(
                        id=utt_id,
                        recording_id=recording.id,
                        start=0.0,
                        duration=duration,
                        text=texts.get(utt_id),
                        speaker=speakers.get(utt_id),
                    )
                ],
            )

    def _utterances(self) -> Iterator[tuple[str, Recording, float, float]]:
        """Yield (utterance, recording, start s, duration s)."""
        segments = self.data_dir / "segments"
        if not segments.exists():
            lengths = _Lengths(self.data_dir, self.sampling_rate, "utt")
            for utt_id, location in read_table(self.data_dir / "wav.scp"):
                recording = lengths.recording(utt_id, location)
                yield utt_id, recording, 0.0, recording.duration
            return

        locations = _Table(self.data_dir / "wav.scp", keep=True)
        lengths = _Lengths(self.data_dir, self.sampling_rate, "reco", keep=True)
        open_recording = lru_cache(maxsize=64)(lengths.recording)
        for utt_id, value in read_table(segments):
            recording_id, start, end = parse_segment(segments, utt_id, value)
            location = locations.get(recording_id)
            if location is None:
                raise ValueError(
                    f"{segments}: utterance {utt_id} names recording {recording_id}, "
                    "which is not in wav.scp. Add it or run utils/fix_data_dir.sh."
                )
            recording = open_recording(recording_id, location)
            if end == -1:  # in Kaldi: to the end
                end = recording.duration
            yield utt_id, recording, start, round(end - start, ndigits=DIGITS)


def parse_segment(path: Path, utt_id: str, value: str) -> tuple[str, float, float]:
    """Split the rest of a `segments` line into (recording, start s, end s)."""
    try:
        recording_id, start, end = value.split()
        return recording_id, float(start), float(end)
    except ValueError:
        raise ValueError(
            f"{path}: utterance {utt_id}: '{value}' is not '<recording> <start> <end>'."
        ) from None


class _Lengths:
    """Lengths of recordings, from tables if present, else from headers."""

    def __init__(self, data_dir: Path, rate: int | None, unit: str, keep: bool = False):
        self.data_dir = data_dir
        self.rate = rate
        self.samples = _Table(data_dir / f"{unit}2num_samples", keep)
        self.durations = _Table(data_dir / f"{unit}2dur", keep)

    def recording(self, recording_id: str, location: str) -> Recording:
        """The recording of a line of wav.scp; opens its audio only if necessary."""
        from lhotse import Recording

        try:
            source = audio_source(location)
            rate, num_samples = self._length(recording_id, location)
        except AudioError as error:
            where = f"{self.data_dir}/wav.scp: recording {recording_id}"
            raise AudioError(f"{where}: {error.reason}", error.remedy) from error
        return Recording(
            id=recording_id,
            sources=[source],
            sampling_rate=rate,
            num_samples=num_samples,
            duration=num_samples / rate,
        )

    def _length(self, recording_id: str, location: str) -> tuple[int, int]:
        """(sampling rate in Hz, number of samples) of a recording."""
        from lhotse.utils import compute_num_samples

        num_samples = _number(self.samples, recording_id, int)
        seconds = _number(self.durations, recording_id, float)
        if num_samples is None and seconds is None:
            return read_header(location)
        rate = self.rate
        if rate is None and num_samples and seconds:
            rate = _common_rate(num_samples, seconds)
        if rate is None:
            rate = self.rate = read_header(location).rate
        return rate, num_samples or compute_num_samples(seconds, rate)


def _number(table: _Table, key: str, kind: Callable[[str], Any]) -> Any:
    """The value of a key as a positive number, None if it is not in the table."""
    value = table.get(key)
    try:
        number = None if value is None else kind(value)
    except ValueError:
        number = 0
    if number is not None and not number > 0:
        raise ValueError(
            f"{table.path}: {key}: '{value}' is not a positive number. Remove the file "
            "or make it again (utils/data/get_utt2dur.sh)."
        )
    return number


def _common_rate(num_samples: int, seconds: float) -> int | None:
    """The common sampling rate nearest to the quotient, None if none is within 1 %."""
    quotient = num_samples / seconds
    rate = min(COMMON_RATES, key=lambda common: abs(common - quotient))
    return rate if abs(rate - quotient) < 0.01 * rate else None


# ---------------------------------------------------------------- Lhotse -> Kaldi


def cuts_to_kaldi(cuts: Iterable[MonoCut], data_dir: PathLike) -> int:
    """Write cuts as a Kaldi data folder; returns the number of utterances.

    Cuts are read once, one at a time; only their table rows are kept, to be sorted.
    `text` is written if any cut has one, `segments` if any cut is not its whole
    recording. An utterance without a speaker becomes its own speaker. The folder does
    not change until every cut has been read.

    Raises:
        ValueError: at a cut whose audio is not exactly that of a file or command
            (mixed, perturbed, padded, in memory), at a duplicate utterance, and if one
            recording id names two files.
    """
    tables: dict[str, dict[str, str]] = defaultdict(dict)
    whole: dict[str, str] = {}  # wav.scp if no cut turns out to be a part
    is_part = False
    for cut in cuts:
        location = _location(cut)
        utt_id, recording = _word(cut.id, cut), cut.recording
        if utt_id in whole:
            raise ValueError(
                f"utterance {utt_id} occurs twice. Give each cut its own id."
            )
        whole[utt_id] = location
        if tables["wav.scp"].setdefault(recording.id, location) != location:
            raise ValueError(
                f"cut {utt_id}: recording {recording.id} is '{location}' here and "
                f"'{tables['wav.scp'][recording.id]}' elsewhere. Give each its own id."
            )
        is_part = is_part or cut.num_samples != recording.num_samples
        supervision = cut.supervisions[0] if cut.supervisions else None
        speaker = supervision.speaker if supervision else None
        tables["utt2spk"][utt_id] = _word(speaker or utt_id, cut)
        if supervision and supervision.text is not None:
            tables["text"][utt_id] = " ".join(supervision.text.splitlines())
        tables["utt2num_samples"][utt_id] = str(cut.num_samples)
        tables["utt2dur"][utt_id] = _seconds(cut.duration)
        # Not cut.end, which Lhotse rounds to a sample.
        stretch = f"{_seconds(cut.start)} {_seconds(cut.start + cut.duration)}"
        tables["segments"][utt_id] = f"{_word(recording.id, cut)} {stretch}"
        tables["reco2num_samples"][recording.id] = str(recording.num_samples)
        tables["reco2dur"][recording.id] = _seconds(recording.duration)

    if not is_part:
        tables["wav.scp"] = whole
        for name in ("segments", "reco2num_samples", "reco2dur"):
            tables.pop(name, None)
    tables["spk2utt"] = _spk2utt(tables["utt2spk"])
    _write_folder(Path(data_dir), tables)
    return len(whole)


def _location(cut: MonoCut) -> str:
    """The wav.scp entry of a cut's audio."""
    recording = getattr(cut, "recording", None)
    changed = recording is None or recording.transforms or recording.num_channels != 1
    source = None if changed else recording.sources[0]
    if source is None or source.type not in ("file", "command"):
        raise ValueError(
            f"cut {cut.id}: its audio is mixed, perturbed, multi-channel, in memory "
            "or absent, so wav.scp cannot name a file. Write it first: "
            "cuts.save_audios(folder)."
        )
    if len(cut.supervisions) > 1:
        raise ValueError(
            f"cut {cut.id} has {len(cut.supervisions)} supervisions, Kaldi has one per "
            "utterance. Split it first: cuts.trim_to_supervisions()."
        )
    return entry(source)


def _word(value: str, cut: MonoCut) -> str:
    """An id, unchanged; Kaldi's tables cannot hold one with a space."""
    if value.split() != [value]:
        raise ValueError(
            f"cut {cut.id}: the id '{value}' is empty or has a space, which Kaldi "
            "cannot hold. Rename it: cuts.map(...)."
        )
    return value


def _seconds(value: float) -> str:
    return f"{value:.{DIGITS}f}".rstrip("0").rstrip(".")


def _spk2utt(utt2spk: dict[str, str]) -> dict[str, str]:
    utterances = defaultdict(list)
    for utt_id in sorted(utt2spk, key=str.encode):
        utterances[utt2spk[utt_id]].append(utt_id)
    return {speaker: " ".join(ids) for speaker, ids in utterances.items()}


def _write_folder(data_dir: Path, tables: dict[str, dict[str, str]]) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    for name in OPTIONAL_TABLES:
        if name not in tables:
            (data_dir / name).unlink(missing_ok=True)
    for name, rows in tables.items():
        write_table(data_dir / name, rows.items())
    write_table(data_dir / "feats_type", [("raw", "")])  # as in ESPnet's dump folders
