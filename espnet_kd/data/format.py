"""ESPnet's dump folders: one audio file for each utterance, at one sampling rate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse import CutSet, MonoCut, Recording
from lhotse.utils import fastcopy
from tqdm import tqdm

from espnet_kd.data.kaldi import cuts_from_kaldi, cuts_to_kaldi


def format_data(
    data_dir: Path, output_dir: Path, sampling_rate: int, factors: Sequence[float]
) -> int:
    """Write `data_dir` as ESPnet trains from it; returns the number of utterances.

    Audio that is used as it stands is not copied. Parts of recordings, piped commands,
    other rates and perturbed speeds become wav files in `output_dir`/wav; those that an
    interrupted run left complete are kept.

    Args:
        data_dir: Kaldi folder.
        output_dir: e.g. dump/raw/train.
        sampling_rate: in Hz.
        factors: speeds; ids of others than 1 become sp0.9-<id> as in Kaldi.
    """
    cuts = cuts_from_kaldi(data_dir)
    made = (
        _as_file(cut, output_dir / "wav")
        for factor in factors
        for cut in _at_speed(cuts, factor, sampling_rate)
    )
    progress = tqdm(made, desc=str(output_dir), unit="utt", disable=None)
    return cuts_to_kaldi(progress, output_dir)


def _at_speed(cuts: CutSet, factor: float, rate: int) -> Iterator[MonoCut]:
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


def _as_file(cut: MonoCut, folder: Path) -> MonoCut:
    """The cut itself where its audio is a whole file, else one that was written."""
    recording = cut.recording
    whole = cut.num_samples == recording.num_samples
    if whole and not recording.transforms and recording.sources[0].type == "file":
        return cut
    path = folder / f"{cut.id}.wav"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = folder / f"{cut.id}.tmp{os.getpid()}.wav"
        cut.save_audio(partial)
        os.replace(partial, path)
    return _on_file(cut, path)


def _on_file(cut: MonoCut, path: Path) -> MonoCut:
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
