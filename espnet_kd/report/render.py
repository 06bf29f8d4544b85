"""The report as Markdown, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_kd.data.files import write_whole
from espnet_kd.report.costs import LABELS_PER_SECOND, SECONDS, Weights
from espnet_kd.report.summary import NO_ROLES, Roles, Row

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.figure import Figure

NO_WEIGHTS: Mapping[str, Weights] = {}
RATE_NAMES = {"word": "WER", "char": "CER"}
_SPARSE_NOTES = {
    "Sparsity %": "Sparsity: share of zeros in the weights of linear, convolutional "
    "and recurrent layers; without a usable config.yaml beside the model, in all "
    "weights of two or more dimensions.",
    "Compressed, MB": "Compressed: one bit for each of these weights and the values "
    "that are not zero, or dense if that is smaller; all the rest unchanged. "
    "Computed, not written: espnet_kd.bin.export writes files.",
    "Multiply-adds, M/s": "Multiply-adds: millions per second of audio in greedy "
    "decoding, without those whose weight is zero; counted on "
    f"{SECONDS} s of noise with {LABELS_PER_SECOND} labels per second. After the "
    "encoder, a transducer runs its prediction network for each label and its joint "
    "network for each node of a path (frames + labels); other models run the attention "
    "decoder in one pass and the CTC layer for each frame. Products of activations "
    "(attention, mel filters) count, Fourier transforms and element-wise steps do not.",
}


def markdown(
    rows: list[Row],
    roles: Roles = NO_ROLES,
    unit: str = "word",
    confidence: float = 0.95,
    resamples: int = 10_000,
    weights: Mapping[str, Weights] = NO_WEIGHTS,
) -> str:
    """The table and an explanation of its columns. Empty columns are left out.

    ``weights`` of systems, by name, add the savings of sparsity.
    """
    rate = RATE_NAMES[unit]
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
        **_sparse_columns(weights),
        f"{rate} reduction %": lambda r: _percent(r.reduction, 1),
        "p": lambda r: "" if r.p_value is None else f"{r.p_value:.2g}",
        "Apart": lambda r: {None: "", True: "yes", False: "no"}[r.apart],
        "Gap closed %": lambda r: _percent(r.gap_closed, 0),
    }
    cells = {title: [show(row) for row in rows] for title, show in columns.items()}
    cells = {title: column for title, column in cells.items() if any(column)}
    if not several:  # it adds nothing to the rate
        cells.pop("Apart", None)
    notes = _notes(cells, roles, rate, resamples)
    return "\n".join([*table(cells), "", *notes]) + "\n"


def table(cells: Mapping[str, list[str]]) -> list[str]:
    """Lines of a Markdown table of columns by title: names left, numbers right."""
    widths = {t: max(map(len, (t, *column))) for t, column in cells.items()}
    names, *_ = cells
    lines = [
        "| " + " | ".join(t.ljust(w) for t, w in widths.items()) + " |",
        "|" + "|".join("-" * (w + 1) + ":" for w in widths.values()) + "|",
    ]
    lines[1] = lines[1].replace("-:", "--", 1)
    for index in range(len(cells[names])):
        filled = [column[index].rjust(widths[title]) for title, column in cells.items()]
        filled[0] = cells[names][index].ljust(widths[names])
        lines.append("| " + " | ".join(filled) + " |")
    return lines


def _sparse_columns(weights: Mapping[str, Weights]) -> dict[str, Callable[[Row], str]]:
    def of(show: Callable[[Weights], str]) -> Callable[[Row], str]:
        return lambda row: show(weights[row.name]) if row.name in weights else ""

    return {
        "Sparsity %": of(lambda w: _percent(w.sparsity, 1)),
        "Compressed, MB": of(lambda w: f"{w.compressed_bytes / 1e6:.2f}"),
        "Multiply-adds, M/s": of(
            lambda w: "" if w.total is None else f"{w.total.nonzero / 1e6:.2f}"
        ),
    }


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
        **_SPARSE_NOTES,
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
        raise ValueError("no system has a model; give --model to draw a plot")
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
            # A percentile interval may just miss its rate.
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
        xlabel="parameters (systems of equal size are shifted side by side)",
        ylabel=f"{RATE_NAMES[unit]} %",
        ylim=(0, top),
    )
    sizes = [row.parameters for row in rows]
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 3)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG and close it."""
    from matplotlib import pyplot

    try:
        write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))
    finally:
        pyplot.close(figure)


def as_json(
    rows: list[Row],
    roles: Roles,
    weights: Mapping[str, Weights] = NO_WEIGHTS,
    **settings: object,
) -> str:
    """Rows, roles and settings for programs; rates are fractions.

    Systems in ``weights`` have every layer; sizes in bytes.
    """
    systems = [asdict(row) for row in rows]
    for system in systems:
        if system["name"] in weights:
            system["weights"] = asdict(weights[system["name"]])
    return json.dumps(
        {**settings, "roles": vars(roles), "systems": systems},
        indent=2,
        ensure_ascii=False,
    )


def _apart(heights: list[float], gap: float) -> list[float]:
    """Raise ascending label heights until neighbours are at least ``gap`` apart."""
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
