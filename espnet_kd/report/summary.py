"""Computes the rows of the report from scored systems."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from espnet_kd.report.bootstrap import bootstrap_rates, interval, paired_p_value
from espnet_kd.report.costs import ModelSize
from espnet_kd.report.scoring import ScoredSet, mean_of_runs


@dataclass(frozen=True)
class System:
    """A system of the report: its name, runs (seeds) and size of its model."""

    name: str
    runs: list[ScoredSet]
    size: ModelSize | None = None


@dataclass(frozen=True)
class Roles:
    """Names of the systems with which the others are compared.

    teacher: the reference for sizes. baseline: the student without KD, the reference
    for error rates. ceiling: the student trained with the labels that KD replaces.
    """

    teacher: str | None = None
    baseline: str | None = None
    ceiling: str | None = None


NO_ROLES = Roles()


@dataclass(frozen=True)
class Row:
    """A row of the report. Rates and shares are fractions (1.0 = 100 %).

    Attributes:
        rate: error rate, mean over the runs; run_rates: of each run.
        spread: highest minus lowest run; deviation: sample standard deviation of the
            runs. None for a single run.
        substitutions, deletions, insertions: per reference unit, mean over the runs.
        low, high: bootstrap interval over utterances of `rate`. It covers the sampling
            of the test set; `spread` describes the variation of runs.
        compression: parameters of the teacher over parameters of this system.
        reduction: (baseline - rate) / baseline.
        p_value: two-sided paired bootstrap against the baseline.
        apart: every run is better, or every run is worse, than every baseline run.
        gap_closed: (baseline - rate) / (baseline - ceiling) of a student; None if the
            ceiling is not better than the baseline.
    """

    name: str
    rate: float
    run_rates: list[float]
    spread: float | None
    deviation: float | None
    substitutions: float
    deletions: float
    insertions: float
    low: float
    high: float
    parameters: int | None
    bytes: int | None
    compression: float | None
    reduction: float | None = None
    p_value: float | None = None
    apart: bool | None = None
    gap_closed: float | None = None


def summarise(
    systems: Iterable[System],
    roles: Roles = NO_ROLES,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Row]:
    """Compute one `Row` per system, in the given order.

    All systems must be scored on the same utterances; they are bootstrapped on the same
    resamples. The errors of an utterance are averaged over a system's runs.

    Raises:
        ValueError: two systems have the same name, a role names an unknown system, or
            the sets of utterances differ.
    """
    by_name: dict[str, System] = {}
    for system in systems:
        if system.name in by_name:
            raise ValueError(f"two systems are called {system.name}")
        by_name[system.name] = system
    _check_roles(roles, by_name)
    means = {name: mean_of_runs(system.runs) for name, system in by_name.items()}
    if len({mean.ids for mean in means.values()}) != 1:
        raise ValueError("systems must be scored on the same utterances")

    errors = np.stack([mean.errors for mean in means.values()])
    lengths = next(iter(means.values())).lengths
    drawn = dict(zip(means, bootstrap_rates(errors, lengths, resamples, seed)))

    return [
        _row(name, by_name, means, drawn, roles, interval(drawn[name], confidence))
        for name in by_name
    ]


def _row(
    name: str,
    by_name: dict[str, System],
    means: dict[str, ScoredSet],
    drawn: dict[str, np.ndarray],
    roles: Roles,
    bounds: tuple[float, float],
) -> Row:
    """One system; ``drawn``: its error rate, and the others', in each resample."""
    system = by_name[name]
    sub, deleted, inserted, units = means[name].totals
    runs = [run.rate for run in system.runs]
    size = system.size
    teacher = by_name[roles.teacher].size if roles.teacher else None
    row = Row(
        name=name,
        rate=means[name].rate,
        run_rates=runs,
        spread=max(runs) - min(runs) if len(runs) > 1 else None,
        deviation=float(np.std(runs, ddof=1)) if len(runs) > 1 else None,
        substitutions=float(sub / units),
        deletions=float(deleted / units),
        insertions=float(inserted / units),
        low=bounds[0],
        high=bounds[1],
        parameters=size.parameters if size else None,
        bytes=size.bytes if size else None,
        compression=teacher.parameters / size.parameters if teacher and size else None,
    )
    base = roles.baseline
    if base is None or name == base:
        return row
    gain = means[base].rate - row.rate
    is_student = name not in (roles.ceiling, roles.teacher)
    gap = means[base].rate - means[roles.ceiling].rate if roles.ceiling else 0.0
    return replace(
        row,
        reduction=_ratio(gain, means[base].rate),
        p_value=paired_p_value(drawn[name], drawn[base], -gain),
        apart=_apart(system, by_name[base]),
        gap_closed=_ratio(gain, gap) if is_student else None,
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _apart(system: System, baseline: System) -> bool:
    ours = [run.rate for run in system.runs]
    theirs = [run.rate for run in baseline.runs]
    return max(ours) < min(theirs) or min(ours) > max(theirs)


def _check_roles(roles: Roles, by_name: dict[str, System]) -> None:
    for role, name in vars(roles).items():
        if name is not None and name not in by_name:
            raise ValueError(
                f"{role}: {name} is not a system; known: {', '.join(by_name)}"
            )
    if roles.ceiling and not roles.baseline:
        raise ValueError("ceiling: needs a baseline, to measure the gap between them")
    if roles.teacher and by_name[roles.teacher].size is None:
        raise ValueError(
            f"teacher: needs the model of {roles.teacher}, to compare sizes with it"
        )
