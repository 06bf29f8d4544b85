"""Selects the hypotheses that become training targets, and their weights.

    n-best list -> merge equal texts -> drop empty text -> filters -> K best -> weights

Every filter tests one hypothesis; an utterance is dropped when none is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from espnet_kd.targets.hypotheses import Hypothesis, expected_wer, hypotheses_of
from espnet_kd.targets.hypothesis_weights import error_weights, posterior_weights

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse.cut import Cut

WEIGHTS = ("uniform", "posterior", "error_weighted")


class Target(NamedTuple):
    """One training target of an utterance; rank 0 is the reference, others count from
    1 as in the list."""

    text: str
    weight: float
    rank: int


class Candidate(NamedTuple):
    """A candidate hypothesis and its rank in the n-best list, counted from 1.

    Attributes:
        error: its WER, or without a reference its expected WER.
        words_per_second: words of its text per second of audio.
    """

    rank: int
    hypothesis: Hypothesis
    error: float
    words_per_second: float


@dataclass(frozen=True)
class Filters:
    """Inclusive bounds on a hypothesis; None means unbounded.

    Attributes:
        max_wer: for hypotheses with a reference.
        max_expected_wer: for hypotheses without (`hypotheses.expected_wer`).
        min_posterior: of the merged hypothesis within the whole n-best list.
        min_length_ratio, max_length_ratio: words per second / their median over the
            1-best of all decoded utterances (looping and truncated hypotheses are far
            from 1).
    """

    max_wer: float | None = None
    max_expected_wer: float | None = None
    min_posterior: float | None = None
    min_length_ratio: float | None = None
    max_length_ratio: float | None = None

    def steps(
        self, labelled: bool, median: float
    ) -> Iterator[tuple[str, Callable[[Candidate], bool]]]:
        """Yield (name, test) of each active filter, in order of use."""
        name = "max_wer" if labelled else "max_expected_wer"
        most = getattr(self, name)
        if most is not None:
            yield name, lambda c: c.error <= most
        if self.min_posterior is not None:
            yield "min_posterior", lambda c: (
                c.hypothesis.posterior >= self.min_posterior
            )
        if self.min_length_ratio is not None:
            yield "min_length_ratio", lambda c: (
                c.words_per_second >= self.min_length_ratio * median
            )
        if self.max_length_ratio is not None:
            yield "max_length_ratio", lambda c: (
                c.words_per_second <= self.max_length_ratio * median
            )


@dataclass(frozen=True)
class Weighting:
    """Weights of the K selected hypotheses of an utterance.

        uniform          1 / K                                          (Mun'im 2018)
        posterior        softmax over K of posterior_scale * score
        error_weighted   the same softmax * exp(-beta * WER)            (Kim 2019)

    Attributes:
        posterior_scale: None means 1 for `posterior` and 0 (1 / K) for
            `error_weighted`.
        beta: sharpness of `error_weighted`; 0 leaves the softmax unchanged.
    """

    name: str = "uniform"
    posterior_scale: float | None = None
    beta: float = 1.0

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """One weight per candidate of an utterance."""
        scale = self.posterior_scale
        if self.name == "uniform":
            scale = 0.0
        elif scale is None:
            scale = 1.0 if self.name == "posterior" else 0.0
        scores = [each.hypothesis.score for each in candidates]
        weights = posterior_weights(scores, scale)
        if self.name == "error_weighted":
            by_error = error_weights([each.error for each in candidates], self.beta)
            weights = [one * other for one, other in zip(weights, by_error)]
        return weights


def merge_texts(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Merge hypotheses with equal words; their posteriors and probabilities add up.

    Different tokens often spell the same words. The first one keeps its rank.
    """
    merged: dict[str, Hypothesis] = {}
    for each in hypotheses:
        text = " ".join(each.text.split())
        if text in merged:
            first = merged[text]
            merged[text] = replace(
                first,
                score=float(np.logaddexp(first.score, each.score)),
                posterior=first.posterior + each.posterior,
            )
        else:
            merged[text] = replace(each, text=text)
    return list(merged.values())


def candidates_of(cut: Cut, labelled: bool) -> list[Candidate]:
    """The merged n-best list of a cut; texts of unlabelled cuts are never used.

    Raises:
        ValueError: the cut was not decoded, or is given as labelled without a WER.
    """
    hypotheses = merge_texts(hypotheses_of(cut))
    if labelled:
        errors = [each.wer for each in hypotheses]
        if None in errors:
            raise ValueError(
                f"cut {cut.id}: decoded without a reference; give its shard as "
                "--unlabelled"
            )
    else:
        errors = expected_wer(hypotheses)
    return [
        Candidate(rank, each, error, len(each.text.split()) / cut.duration)
        for rank, (each, error) in enumerate(zip(hypotheses, errors), 1)
    ]


def median_words_per_second(cuts: Iterable[Cut]) -> float:
    """Median over the non-empty 1-best of all cuts."""
    rates = []
    for cut in cuts:
        hypotheses = hypotheses_of(cut)
        words = len(hypotheses[0].text.split()) if hypotheses else 0
        if words:
            rates.append(words / cut.duration)
    return float(np.median(rates)) if rates else 0.0


class FilterCounts:
    """Numbers of targets, utterances and hours left after each step."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, step: str, targets: int, seconds: float) -> None:
        """Count an utterance with `targets` targets left after `step`."""
        row = self.rows.setdefault(step, [0, 0, 0.0])
        if targets:
            row[0] += targets
            row[1] += 1
            row[2] += seconds / 3600

    def as_dict(self) -> dict[str, dict[str, float]]:
        """{step: {targets, utterances, hours}}, in order of the steps."""
        names = ("targets", "utterances", "hours")
        return {step: dict(zip(names, row)) for step, row in self.rows.items()}


def select(
    cut: Cut,
    *,
    labelled: bool,
    filters: Filters,
    median: float,
    nbest: int,
    weighting: Weighting,
    counter: FilterCounts,
) -> list[Target]:
    """The hypotheses of one cut that become targets, best first."""
    counter.add("decoded", len(hypotheses_of(cut)), cut.duration)
    kept = candidates_of(cut, labelled)
    counter.add("merge_texts", len(kept), cut.duration)
    kept = [each for each in kept if each.hypothesis.text]
    counter.add("drop_empty", len(kept), cut.duration)
    for name, test in filters.steps(labelled, median):
        kept = [each for each in kept if test(each)]
        counter.add(name, len(kept), cut.duration)
    kept = kept[:nbest]
    counter.add("nbest", len(kept), cut.duration)
    if not kept:
        return []
    return [
        Target(each.hypothesis.text, weight, each.rank)
        for each, weight in zip(kept, weighting(kept))
    ]


def merge_reference(reference: str, targets: Sequence[Target]) -> list[Target]:
    """The reference with weight 1, then the hypotheses; one with the same words is
    merged into it."""
    same = sum(target.weight for target in targets if target.text == reference)
    others = [target for target in targets if target.text != reference]
    return [Target(reference, 1.0 + same, 0), *others]
