"""Error rate against sparsity, as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_kd.report.render import RATE_NAMES, save_figure
from espnet_kd.report.summary import Row

_ASIDE = 1.0  # percentage points between curves, so that intervals are side by side


@dataclass(frozen=True)
class Curve:
    """A line of the plot and its systems, in any order."""

    label: str
    names: list[str]


def plot_curves(
    rows: Sequence[Row],
    sparsity: Mapping[str, float],
    curves: Sequence[Curve],
    path: str | Path,
    unit: str = "word",
) -> None:
    """Plot each curve as PNG, with the interval and the runs of each system.

    Args:
        sparsity: share of zeros, by name of the system.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_name = {row.name: row for row in rows}
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    top = 0.0
    for index, curve in enumerate(curves):
        aside = _ASIDE * (index - (len(curves) - 1) / 2)
        names = sorted(curve.names, key=lambda name: sparsity[name])
        line = [by_name[name] for name in names]
        places = [100 * sparsity[name] + aside for name in names]
        rates = [100 * row.rate for row in line]
        # A percentile interval may just miss its rate.
        below = [max(0, 100 * (row.rate - row.low)) for row in line]
        above = [max(0, 100 * (row.high - row.rate)) for row in line]
        drawn = axes.errorbar(
            places, rates, [below, above], fmt="o-", capsize=3, label=curve.label
        )
        colour = drawn[0].get_color()
        for row, x in zip(line, places):
            runs = [100 * run for run in row.run_rates]
            axes.plot([x] * len(runs), runs, "x", color=colour, markersize=4)
            top = max(top, 100 * row.high, *runs)
    axes.set(
        xlabel="sparsity % (curves are shifted side by side)",
        ylabel=f"{RATE_NAMES[unit]} %",
        ylim=(0, 1.1 * top or 1.0),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
