"""The report as Markdown, as JSON and as a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from espnet_kd.report.summary import NO_ROLES, Roles, Row

_RATE = {"word": "WER", "char": "CER"}


def markdown(
    rows: list[Row],
    roles: Roles = NO_ROLES,
    unit: str = "word",
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> str:
    """The table, and below it what its columns mean. Empty columns are left out."""
    rate = _RATE[unit]
    several = any(len(row.run_rates) > 1 for row in rows)
    columns: dict[str, Callable[[Row], str]] = {
        "System": lambda r: _named(r.name, roles),
        "Runs": lambda r: str(len(r.run_rates)) if several else "",
        f"{rate} %": lambda r: _percent(r.rate),
        f"{confidence:.0%} interval": lambda r: f"{_percent(r.low)}-{_percent(r.high)}",
        "Spread": lambda r: _percent(r.spread),
        "Std": lambda r: _percent(r.deviation),
        "S / D / I %": lambda r: " / ".join(
            map(_percent, (r.substitutions, r.deletions, r.insertions))
        ),
        "Parameters": lambda r: _count(r.parameters),
        "Size, MB": lambda r: "" if r.bytes is None else f"{r.bytes / 1e6:.2f}",
        "Compression": lambda r: _times(r.compression),
        f"{rate} reduction %": lambda r: _percent(r.reduction, 1),
        "p": lambda r: "" if r.p_value is None else f"{r.p_value:.2g}",
        "Apart": lambda r: {None: "", True: "yes", False: "no"}[r.apart],
        "Gap closed %": lambda r: _percent(r.gap_closed, 0),
    }
    cells = {title: [show(row) for row in rows] for title, show in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    if not several:  # then it only says again what the rate says
        cells.pop("Apart", None)
    widths = {t: max(map(len, (t, *column))) for t, column in cells.items()}
    lines = [
        "| " + " | ".join(t.ljust(w) for t, w in widths.items()) + " |",
        "|" + "|".join("-" * (w + 1) + ":" for w in widths.values()) + "|",
    ]
    lines[1] = lines[1].replace("-:", "--", 1)  # names to the left, figures right
    for index in range(len(rows)):
        filled = [column[index].rjust(widths[title]) for title, column in cells.items()]
        filled[0] = filled[0].strip().ljust(widths["System"])
        lines.append("| " + " | ".join(filled) + " |")
    notes = _notes(cells, roles, rate, resamples)
    return "\n".join([*lines, "", *notes]) + "\n"


def _notes(
    cells: dict[str, list[str]], roles: Roles, rate: str, resamples: int
) -> list[str]:
    base = roles.baseline
    notes = {
        "S / D / I %": f"{rate} = (substitutions + deletions + insertions) / reference "
        f"length, mean over the runs. The interval is a bootstrap over utterances "
        f"({resamples} resamples).",
        "Spread": "Spread: highest minus lowest run; Std: standard deviation of runs.",
        "Compression": f"Compression: parameters of {roles.teacher} over parameters.",
        f"{rate} reduction %": f"{rate} reduction: relative, against {base}.",
        "p": f"p: two-sided paired bootstrap against {base} (Bisani and Ney, 2004).",
        "Apart": f"Apart: all runs are better (or all worse) than all runs of {base}.",
        "Gap closed %": f"Gap closed: share of the way from {base} to {roles.ceiling}.",
    }
    return [f"* {text}" for title, text in notes.items() if title in cells]


def plot(rows: list[Row], path: str | Path, unit: str = "word") -> None:
    """Draw error rate against parameters (log) as PNG; rows without size are left out.

    Raises:
        ValueError: no row has a size.
    """
    rows = [row for row in rows if row.parameters is not None]
    if not rows:
        raise ValueError("no system has a model: there is nothing to draw")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    top = 1.1 * max(100 * max(row.high, *row.run_rates) for row in rows) or 1.0
    for size in sorted({row.parameters for row in rows}):
        same = [row for row in rows if row.parameters == size]
        same.sort(key=lambda row: row.rate)
        places = [size * 1.04 ** (i - (len(same) - 1) / 2) for i in range(len(same))]
        heights = _apart([100 * row.rate for row in same], gap=top / 22)
        for row, x, height in zip(same, places, heights):
            rate, low, high = 100 * row.rate, 100 * row.low, 100 * row.high
            # A percentile interval may just miss the rate that it belongs to.
            error = [[max(0, rate - low)], [max(0, high - rate)]]
            drawn = axes.errorbar(x, rate, error, fmt="o", capsize=3)
            colour = drawn[0].get_color()
            runs = [100 * run for run in row.run_rates]
            axes.plot([x] * len(runs), runs, "x", color=colour, markersize=4)
            axes.annotate(
                row.name,
                (x, rate),
                xytext=(places[-1] * 1.12, height),
                color=colour,
                fontsize=9,
                verticalalignment="center",
                arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3},
            )
    axes.set(
        xscale="log",
        xlabel="parameters (systems of one size stand side by side)",
        ylabel=f"{_RATE[unit]} %",
        ylim=(0, top),
    )
    sizes = [row.parameters for row in rows]
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 3)
    axes.grid(alpha=0.3)
    try:
        write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))
    finally:
        pyplot.close(figure)


def as_json(rows: list[Row], roles: Roles, **settings: object) -> str:
    """Rows, roles and settings for a program to read; rates are fractions."""
    return json.dumps(
        {**settings, "roles": vars(roles), "systems": [asdict(row) for row in rows]},
        indent=2,
        ensure_ascii=False,
    )


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Lift ascending label heights until two neighbours are ``gap`` or more apart."""
    lifted: list[float] = []
    for height in heights:
        lifted.append(max(height, lifted[-1] + gap) if lifted else height)
    return lifted


def _named(name: str, roles: Roles) -> str:
    own = [role for role, of in vars(roles).items() if of == name and role != name]
    return f"{name} ({', '.join(own)})" if own else name


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.3f} M"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"
