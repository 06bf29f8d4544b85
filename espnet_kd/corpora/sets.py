"""The sets of a distillation experiment, written as Kaldi data folders.

    labelled pool    --> train_teacher      text: trains the teacher
                     \\-> train_labelled     text: its first part, for the students
    unlabelled pool  --> train_unlabelled   no text; transcripts are in text_reference
    both parts       --> train_full         text: the upper bound, with all labels
    valid, test      --> valid, test        text

The teacher is not trained on the unlabelled pool that it labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from espnet_kd.data.files import write_text, write_whole
from espnet_kd.data.kaldi import cuts_to_kaldi, write_table

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import MonoCut

LEVEL = 0.05  # RMS of every utterance, full scale 1.0
PARTS = ("labelled", "unlabelled", "valid", "test")


class Utterance(NamedTuple):
    """One utterance as made by a corpus."""

    id: str
    speaker: str
    text: str
    samples: np.ndarray  # (samples,), any level
    noise: str  # kind of noise
    snr_db: float


def write_sets(
    output_dir: Path,
    parts: dict[str, Iterable[Utterance]],
    *,
    sizes: dict[str, int],
    num_labelled: int,
    sampling_rate: int,
) -> None:
    """Write the wav files and the six data folders below `output_dir`.

    Args:
        output_dir: the recipe's data/ folder; paths in wav.scp begin with it.
        parts: the utterances of each of PARTS, made one at a time.
        sizes: the number of utterances of each of PARTS (for the progress bar).
        num_labelled: number of labelled utterances for the students.
        sampling_rate: in Hz.
    """
    from lhotse import CutSet

    cuts: dict[str, list[MonoCut]] = {}
    for name in PARTS:
        bar = tqdm(parts[name], desc=name, total=sizes[name], disable=None)
        cuts[name] = list(_write_audio(output_dir / "wav" / name, bar, sampling_rate))
    # Utterances of a pool are independent draws, so a first part is a random part.
    labelled = cuts["labelled"][:num_labelled]
    folders = {
        "train_teacher": cuts["labelled"],
        "train_labelled": labelled,
        "train_unlabelled": [_without_text(cut) for cut in cuts["unlabelled"]],
        "train_full": labelled + cuts["unlabelled"],
        "valid": cuts["valid"],
        "test": cuts["test"],
    }
    for name, members in folders.items():
        cuts_to_kaldi(CutSet(members), output_dir / name)
        write_table(
            output_dir / name / "utt2noise",
            [(cut.id, f"{cut.noise} {cut.snr_db:.2f}") for cut in members],
        )
    write_table(
        output_dir / "train_unlabelled" / "text_reference",
        [(cut.id, cut.supervisions[0].text) for cut in cuts["unlabelled"]],
    )
    for name, members in folders.items():
        hours = sum(cut.duration for cut in members) / 3600
        print(f"{output_dir / name}: {len(members)} utterances, {hours:.2f} h")


def _write_audio(
    wav_dir: Path, utterances: Iterable[Utterance], rate: int
) -> Iterator[MonoCut]:
    """Write each utterance as a 16-bit wav file and yield its cut."""
    options = dict(samplerate=rate, format="WAV", subtype="PCM_16")
    for utterance in utterances:
        path = wav_dir / f"{utterance.id}.wav"
        samples = levelled(utterance.samples)
        write_whole(path, partial(soundfile.write, data=samples, **options))
        yield _cut(utterance, path, len(samples), rate)


def levelled(samples: np.ndarray) -> np.ndarray:
    """The samples at the common level, or lower if a peak would clip."""
    gain = LEVEL / np.sqrt(np.mean(np.square(samples)))
    return samples * min(gain, 0.99 / np.max(np.abs(samples)))


def _cut(utterance: Utterance, path: Path, num_samples: int, rate: int) -> MonoCut:
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    recording = Recording(
        id=utterance.id,
        sources=[AudioSource("file", channels=[0], source=str(path))],
        sampling_rate=rate,
        num_samples=num_samples,
        duration=num_samples / rate,
    )
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=utterance.id,
        start=0.0,
        duration=recording.duration,
        text=utterance.text,
        speaker=utterance.speaker,
    )
    return MonoCut(
        id=utterance.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
        custom={"noise": utterance.noise, "snr_db": utterance.snr_db},
    )


def _without_text(cut: MonoCut) -> MonoCut:
    from lhotse.utils import fastcopy

    return cut.map_supervisions(lambda segment: fastcopy(segment, text=None))


# ---------------------------------------------------------------- for the commands


def add_options(
    parser: argparse.ArgumentParser, sizes: dict[str, int], snr: tuple[float, float]
) -> None:
    """Add the options common to these corpora, with the defaults of one."""
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="made")
    for name, size in sizes.items():
        parser.add_argument(
            f"--num_{name}", type=int, default=size, help=f"utterances in {name}"
        )
    parser.add_argument(
        "--snr", type=float, nargs=2, default=snr, help="range in dB, uniform"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides everything")


def prepare(
    args: argparse.Namespace,
    make: Callable[[str, int], Iterable[Utterance]],
    sampling_rate: int,
) -> None:
    """Make the sets unless they were made with the same options (stored in .done).

    Args:
        args: options of `add_options` and of the corpus.
        make: returns the utterances of a part, called with (part, number).
        sampling_rate: in Hz.
    """
    if args.num_train_labelled > args.num_train_teacher:
        raise ValueError(
            f"--num_train_labelled {args.num_train_labelled} is more than "
            f"--num_train_teacher {args.num_train_teacher}; it must be a part of it."
        )
    mark = args.output_dir / ".done"
    wanted = _recipe(args)
    if mark.exists() and mark.read_text() == wanted:
        print(f"{args.output_dir}: already made with these options (see {mark})")
        return
    mark.unlink(missing_ok=True)
    sizes = {
        "labelled": args.num_train_teacher,
        "unlabelled": args.num_train_unlabelled,
        "valid": args.num_valid,
        "test": args.num_test,
    }
    write_sets(
        args.output_dir,
        {part: make(part, size) for part, size in sizes.items()},
        sizes=sizes,
        num_labelled=args.num_train_labelled,
        sampling_rate=sampling_rate,
    )
    write_text(mark, wanted)


def _recipe(args: argparse.Namespace) -> str:
    """Everything that determines the data, without the location of the corpus."""
    options = {
        name: value
        for name, value in vars(args).items()
        if name.startswith("num_") or name in ("output_dir", "snr", "seed")
    }
    return json.dumps(options, sort_keys=True, default=str) + "\n"
