"""N-best hypotheses on Lhotse cuts: `supervision.custom["hypotheses"]`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Sequence

import numpy as np
from kaldialign import edit_distance

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import CutSet
    from lhotse.cut import Cut

FIELD = "hypotheses"


class SearchResult(NamedTuple):
    """One entry of a search's n-best list.

    Attributes:
        text: detokenised words, as written by stock inference.
        token_ids: without <sos>, <eos> and blank.
        score: total log-probability of the search, LM and other scorers included.
        lm_score: the LM's log-probability, unweighted; None without LM and for
            transducers, whose searches do not return it separately.
    """

    text: str
    token_ids: list[int]
    score: float
    lm_score: float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """One entry of an utterance's n-best list, as decoded by a teacher.

    Attributes:
        text: words.
        token_ids: ids in the teacher's token list, without blank, <sos> and <eos>.
        score: total log-probability given by the search.
        lm_score: log-probability given by the language model, if known.
        posterior: softmax of the scores over the list.
        wer: edits / reference words (1.0 = 100 %), None without a reference.
    """

    text: str
    token_ids: list[int]
    score: float
    lm_score: float | None
    posterior: float
    wer: float | None


def edits(reference: str, text: str) -> int:
    """Levenshtein distance in words."""
    return edit_distance(reference.split(), text.split())["total"]


def wer(reference: str, text: str) -> float:
    """Word edits / reference words; can exceed 1.

    An empty reference gives 0 for an empty text and 1 for any other.
    """
    words = len(reference.split())
    if not words:
        return float(bool(text.split()))
    return edits(reference, text) / words


def posteriors(scores: Sequence[float]) -> list[float]:
    """Softmax of log-probabilities over an n-best list."""
    if not len(scores):
        return []
    shifted = np.exp(np.asarray(scores, dtype=np.float64) - max(scores))
    return (shifted / shifted.sum()).tolist()


def expected_wer(hypotheses: Sequence[Hypothesis]) -> list[float]:
    """The expected WER of each hypothesis, computed without a reference.

    For hypothesis k: sum over the others j of posterior_j * WER(text_k, text_j), its
    risk if the truth is drawn from the n-best posterior. It replaces the WER in
    exp(-beta * WER) on unlabelled audio, and is 0 for a list of one.
    """
    total = sum(each.posterior for each in hypotheses)
    return [
        sum(
            other.posterior / total * wer(other.text, one.text)
            for other in hypotheses
            if other is not one
        )
        for one in hypotheses
    ]


def reference_of(cut: Cut) -> str | None:
    """The text of a cut's supervision, None if the cut is unlabelled."""
    return cut.supervisions[0].text if cut.supervisions else None


def hypotheses_of(cut: Cut) -> list[Hypothesis]:
    """The n-best list stored on a cut; may be empty.

    Raises:
        ValueError: the cut was not decoded.
    """
    custom = (cut.supervisions[0].custom if cut.supervisions else None) or {}
    if FIELD not in custom:
        raise ValueError(
            f"cut {cut.id}: its supervision has no `{FIELD}`; decode it first with "
            "python -m espnet_kd.bin.teacher_decode"
        )
    return [Hypothesis(**each) for each in custom[FIELD]]


def with_hypotheses(cut: Cut, hypotheses: Sequence[Hypothesis]) -> Cut:
    """A copy of the cut with an n-best list.

    A cut without supervision gets one with its own id, without text.

    Raises:
        ValueError: the cut has several supervisions.
    """
    from lhotse import SupervisionSegment

    if len(cut.supervisions) > 1:
        raise ValueError(
            f"cut {cut.id} has {len(cut.supervisions)} supervisions, must have one: "
            "cuts.trim_to_supervisions()"
        )
    supervision = (
        cut.supervisions[0]
        if cut.supervisions
        else SupervisionSegment(
            id=cut.id, recording_id=cut.recording_id, start=0.0, duration=cut.duration
        )
    )
    custom = {
        **(supervision.custom or {}),
        FIELD: [asdict(each) for each in hypotheses],
    }
    return replace(cut, supervisions=[replace(supervision, custom=custom)])


def read_cuts(path: str | Path) -> CutSet:
    """Open a manifest of cuts (.jsonl or .jsonl.gz) lazily.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: its name does not end in .jsonl or .jsonl.gz.
    """
    from lhotse import CutSet

    if not str(path).endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path}: must be a .jsonl or .jsonl.gz file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such manifest of cuts")
    return CutSet.from_jsonl_lazy(path)
