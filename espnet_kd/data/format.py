"""ESPnet's dump folders: one audio file for each utterance, at one sampling rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile
from tqdm import tqdm

from espnet_kd.data.files import write_whole
from espnet_kd.data.kaldi import cuts_from_kaldi, cuts_to_kaldi

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import CutSet, MonoCut


def format_data(
    data_dir: Path, output_dir: Path, sampling_rate: int, factors: Sequence[float]
) -> int:
    """Write `data_dir` in the form that ESPnet trains from; returns the number of
    utterances.

    Audio that can be used as is is not copied. Parts of recordings, piped commands,
    other rates and perturbed speeds become wav files in `output_dir`/wav. Files of an
    earlier run are kept if they have the right length and rate and are newer than their
    sources.

    Args:
        data_dir: Kaldi folder.
        output_dir: for example dump/raw/train.
        sampling_rate: in Hz.
        factors: speeds; for factors other than 1, ids become sp0.9-<id> as in Kaldi.
    """
    cuts = cuts_from_kaldi(data_dir)
    since = max(_changed(data_dir / name) for name in ("wav.scp", "segments"))
    made = (
        _as_file(cut, output_dir / "wav", since)
        for factor in factors
        for cut in _at_speed(cuts, factor, sampling_rate)
    )
    progress = tqdm(made, desc=str(output_dir), unit="utt", disable=None)
    return cuts_to_kaldi(progress, output_dir)


def _at_speed(cuts: CutSet, factor: float, rate: int) -> Iterator[MonoCut]:
    from lhotse.utils import fastcopy

    for cut in cuts:
        cut = cut.resample(rate)
        if factor != 1:
            prefix = f"sp{factor}-"
            cut = cut.perturb_speed(factor, affix_id=False)
            speaker = cut.supervisions[0].speaker or cut.id
            segment = fastcopy(
                cut.supervisions[0], id=prefix + cut.id, speaker=prefix + speaker
            )
            cut = fastcopy(cut, id=prefix + cut.id, supervisions=[segment])
        yield cut


def _as_file(cut: MonoCut, folder: Path, since: int) -> MonoCut:
    """The cut itself if its audio is a whole file, else a cut of a newly written file.

    A file that was written before `since` (ns) is written again.
    """
    recording = cut.recording
    is_file = recording.sources[0].type == "file"
    whole = cut.num_samples == recording.num_samples
    if whole and not recording.transforms and is_file:
        return cut
    if is_file:
        since = max(since, _changed(Path(recording.sources[0].source)))
    path = folder / f"{cut.id}.wav"
    if not _is_current(path, cut, since):
        write_whole(path, cut.save_audio)
    return _on_file(cut, path)


def _changed(path: Path) -> int:
    """When a file was last written (ns); 0 if it does not exist."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _is_current(path: Path, cut: MonoCut, since: int) -> bool:
    """Whether a file is the cut's audio, judged by its header and age."""
    if _changed(path) <= since:
        return False
    header = soundfile.info(path)
    wanted = (cut.sampling_rate, cut.num_samples)
    return (header.samplerate, header.frames) == wanted


def _on_file(cut: MonoCut, path: Path) -> MonoCut:
    from lhotse import Recording
    from lhotse.utils import fastcopy

    recording = Recording.from_file(path, recording_id=cut.id)
    segment = fastcopy(
        cut.supervisions[0],
        recording_id=cut.id,
        start=0.0,
        duration=recording.duration,
    )
    return fastcopy(
        cut,
        start=0.0,
        duration=recording.duration,
        recording=recording,
        supervisions=[segment],
    )
