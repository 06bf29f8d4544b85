"""Decoding cuts into a shard of hypotheses, resumable by utterance."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence

import numpy as np
from tqdm import tqdm

from espnet_kd.targets.hypotheses import (
    Hypothesis,
    SearchResult,
    edits,
    hypotheses_of,
    posteriors,
    read_cuts,
    reference_of,
    wer,
    with_hypotheses,
)

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import CutSet
    from lhotse.cut import Cut

# Samples of utterances -> the n-best list of each.
Decoder = Callable[[Sequence[np.ndarray]], Sequence[Sequence[SearchResult]]]


def select_cuts(cuts: CutSet, key_file: str | Path | None) -> list[Cut]:
    """The cuts of one job: those whose ids are in the first column of `key_file`.

    Raises:
        ValueError: an id is not among the cuts, or occurs twice there; or no cut is
            left.
    """
    keys = None
    if key_file is not None:
        with open(key_file, encoding="utf-8") as lines:
            keys = {line.split()[0] for line in lines if line.strip()}
    selected = [cut for cut in cuts if keys is None or cut.id in keys]
    ids = {cut.id for cut in selected}
    if keys is not None and keys - ids:
        missing = sorted(keys - ids)
        raise ValueError(
            f"{key_file}: {len(missing)} ids are not among the cuts: "
            f"{' '.join(missing[:5])}; split the list of the same data set"
        )
    if len(ids) < len(selected):
        seen: set[str] = set()
        twice = next(c.id for c in selected if c.id in seen or seen.add(c.id))
        raise ValueError(f"cut {twice} occurs twice; ids of cuts must be unique")
    if not selected:
        raise ValueError(f"{key_file or 'cuts'}: no utterances to decode")
    return selected


def check_cuts(cuts: Sequence[Cut], sampling_rate: int) -> None:
    """Refuse cuts that a teacher cannot decode, before it is loaded.

    Raises:
        ValueError: names the first cut that is mixed, has several channels or
            supervisions, or a sampling rate other than the teacher's.
    """
    from lhotse.cut import MonoCut

    for cut in cuts:
        if not isinstance(cut, MonoCut):
            raise ValueError(
                f"cut {cut.id} is a {type(cut).__name__}; must be one channel of one "
                "recording. Write it out first: cuts.save_audios(folder)"
            )
        if len(cut.supervisions) > 1:
            raise ValueError(
                f"cut {cut.id} has {len(cut.supervisions)} supervisions, must have "
                "one: cuts.trim_to_supervisions()"
            )
        if cut.sampling_rate != sampling_rate:
            raise ValueError(
                f"cut {cut.id}: sampling rate {cut.sampling_rate} Hz, the teacher's is "
                f"{sampling_rate} Hz (frontend_conf.fs). Resample the data "
                "(asr.sh --fs, or cuts.resample) or use another teacher"
            )


def cut_torn_line(path: str | Path) -> bool:
    """Remove an incomplete last line, as left by a kill; returns whether it did."""
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    with open(path, "rb+") as stream:
        stream.truncate(whole)
    return True


def decoded_ids(shard: str | Path) -> set[str]:
    """Ids of the utterances in a shard, which may not exist yet."""
    return {cut.id for cut in read_cuts(shard)} if Path(shard).is_file() else set()


def to_hypotheses(
    results: Sequence[SearchResult], reference: str | None
) -> list[Hypothesis]:
    """Add posteriors over the list and, given a reference, the WER."""
    return [
        Hypothesis(
            text=result.text,
            token_ids=result.token_ids,
            score=result.score,
            lm_score=result.lm_score,
            posterior=posterior,
            wer=None if reference is None else wer(reference, result.text),
        )
        for result, posterior in zip(results, posteriors([r.score for r in results]))
    ]


def decode_cuts(
    cuts: Sequence[Cut], decode: Decoder, shard: str | Path, batch_size: int = 1
) -> tuple[float, float]:
    """Decode the cuts that are not in the shard yet and append them to it.

    A line is on disk as soon as its batch is done, in the order of `cuts`.

    Returns:
        Seconds spent, and seconds per second of audio (RTF).

    Raises:
        ValueError: audio that cannot be read.
    """
    from lhotse.serialization import SequentialJsonlWriter

    done = decoded_ids(shard)
    waiting = [cut for cut in cuts if cut.id not in done]
    started, seconds = time.monotonic(), 0.0
    bar = tqdm(
        initial=len(cuts) - len(waiting),
        total=len(cuts),
        unit="utt",
        desc=Path(shard).name,
        mininterval=0.1 if sys.stderr.isatty() else 30.0,  # a log is not a terminal
    )
    with SequentialJsonlWriter(str(shard), overwrite=False) as writer, bar:
        for first in range(0, len(waiting), batch_size):
            batch = waiting[first : first + batch_size]
            for cut, found in zip(batch, decode([_load(cut) for cut in batch])):
                hypotheses = to_hypotheses(found, reference_of(cut))
                writer.write(with_hypotheses(cut, hypotheses), flush=True)
                seconds += cut.duration
                bar.update()
    spent = time.monotonic() - started
    return spent, spent / seconds if seconds else 0.0


def _load(cut: Cut) -> np.ndarray:
    try:
        return cut.load_audio()[0]
    except Exception as error:
        source = cut.recording.sources[0].source
        reason = " ".join(str(error).splitlines()[:2])  # Lhotse's messages are long
        raise ValueError(
            f"cut {cut.id}: audio {source} cannot be read ({reason}). Paths are "
            "relative to the recipe folder; run there, or check the data with "
            "python -m espnet_kd.bin.kaldi_to_cuts"
        ) from error


@dataclass(frozen=True)
class Summary:
    """Summary of a shard. Rates are None if no utterance has a reference."""

    utterances: int
    hours: float
    empty: int
    wer: float | None
    oracle_wer: float | None
    posterior: float

    def __str__(self) -> str:
        rates = (
            f"WER {self.wer:.2%}, oracle {self.oracle_wer:.2%}"
            if self.wer is not None
            else "no references"
        )
        return (
            f"{self.utterances} utterances, {self.hours:.2f} h, {rates}, mean "
            f"posterior of the 1-best {self.posterior:.3f}, {self.empty} without "
            "hypothesis"
        )


def summarise(shard: str | Path) -> Summary:
    """1-best WER, oracle WER of the n-best and mean 1-best posterior of a shard."""
    utterances = empty = words = errors = oracle = 0
    seconds = posterior = 0.0
    for cut in read_cuts(shard):
        hypotheses, reference = hypotheses_of(cut), reference_of(cut)
        utterances += 1
        seconds += cut.duration
        empty += not hypotheses
        posterior += hypotheses[0].posterior if hypotheses else 0.0
        if reference is not None:
            texts = [each.text for each in hypotheses] or [""]
            found = [edits(reference, text) for text in texts]
            words += len(reference.split())
            errors += found[0]
            oracle += min(found)
    return Summary(
        utterances=utterances,
        hours=seconds / 3600,
        empty=empty,
        wer=errors / words if words else None,
        oracle_wer=oracle / words if words else None,
        posterior=posterior / max(1, utterances - empty),
    )
