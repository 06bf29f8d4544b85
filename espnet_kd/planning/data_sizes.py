"""Disk space of the data: audio, hypotheses, KD sets, targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from espnet_kd.planning.model_costs import Speech
from espnet_kd.planning.training import Figure

# Bytes of text files, for English. Checked against real files, see docs/planning.md.
CHARACTERS = 15  # of text in a second of speech
HEADER = 44  # of a wav file
CUT, HYPOTHESIS, TOKEN = 520, 130, 6  # of a shard: a cut, an n-best entry, a token id
ENTRY = 350  # of a KD set, over all its tables: ids, numbers and a path


def perturbed(audio: float, factors: Sequence[float]) -> float:
    """Seconds of all copies; at speed f they are 1/f as long."""
    return audio * sum(1 / factor for factor in factors)


def formatted_audio(
    audio: float, speech: Speech, factors: Sequence[float], is_whole: bool
) -> Figure:
    """Bytes of the wav files (16 bit) that stage 2 writes.

    Args:
        audio: seconds, before speed perturbation.
        is_whole: the audio has one file per utterance at the right rate, which is used
            without a copy.
    """
    written = [f for f in factors if f != 1 or not is_whole]
    seconds = perturbed(audio, written)
    files = len(written) * audio / speech.seconds
    return Figure(
        2 * speech.rate * seconds + HEADER * files,
        f"2 bytes x {speech.rate} Hz x {seconds / 3600:.4g} h written",
    )


def hypotheses(audio: float, speech: Speech, nbest: int) -> Figure:
    """Bytes of the shards of teacher decoding."""
    utterances = audio / speech.seconds
    text = speech.seconds * (CHARACTERS + TOKEN * speech.labels)
    each = CUT + CHARACTERS * speech.seconds + nbest * (HYPOTHESIS + text)
    return Figure(
        utterances * each,
        f"{utterances:.3g} utterances x {each:.0f} bytes ({nbest} hypotheses)",
    )


def kd_set(audio: float, speech: Speech, targets: float) -> Figure:
    """Bytes of a KD training set, which refers to audio and does not copy it.

    Args:
        targets: per utterance.
    """
    entries = targets * audio / speech.seconds
    each = ENTRY + CHARACTERS * speech.seconds
    return Figure(entries * each, f"{entries:.3g} targets x {each:.0f} bytes")


class StoredTarget(NamedTuple):
    """Teacher outputs that could be stored, and their bytes."""

    name: str
    size: Figure


def soft_targets(
    audio: float, speech: Speech, frame_rate: float, top_k: int = 8, band: int = 5
) -> list[StoredTarget]:
    """Bytes of soft targets of each kind: fp16 values, 16-bit ids, no compression."""
    utterances = audio / speech.seconds
    frames, labels = frame_rate * speech.seconds, speech.labels * speech.seconds
    kinds = {
        f"frames, top-{top_k}": (frames, 4 * top_k, "T x k x (2 + 2)"),
        f"tokens, top-{top_k}": (labels + 1, 4 * top_k, "L x k x (2 + 2)"),
        f"path, top-{top_k}": (
            frames + labels,
            6 + 4 * top_k + 2,
            "(T + U) x (t, u, label of 2 + k x (2 + 2) + tail 2)",
        ),
        "lattice, collapsed": (frames * (labels + 1), 4, "2 x T x (U + 1) x 2"),
        f"band of {band} rows, collapsed": (frames * band, 4, "2 x T x rows x 2"),
    }
    return [
        StoredTarget(
            name, Figure(utterances * nodes * each, f"{formula} bytes per utterance")
        )
        for name, (nodes, each, formula) in kinds.items()
    ]
