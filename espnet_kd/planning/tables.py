"""The plan as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from espnet_kd.planning.data_sizes import StoredTarget
from espnet_kd.planning.stages import Recipe, Stage
from espnet_kd.planning.training import Figure
from espnet_kd.report.render import table as columns


def table(recipe: Recipe, stages: Sequence[Stage]) -> str:
    """Models, a row for each stage, and warnings of what does not fit."""
    gpu = recipe.gpu
    lines = [
        f"{name}: {model.name}, {model.parameters / 1e6:.1f} M parameters, "
        f"{model.multiply_adds / 1e9:.2f} G multiply-adds/s, "
        f"{model.frame_rate:.3g} frames/s"
        for name, model in (
            *(("teacher", teacher) for teacher in recipe.teachers),
            ("student", recipe.student),
        )
    ]
    lines.append(
        f"{recipe.ngpu} x {gpu.name} ({gpu.memory / 1e9:g} GB), {recipe.jobs} jobs on "
        f"CPUs; all figures are estimates within a factor of two (docs/planning.md)"
    )
    cells = {
        "Stage": [f"{s.number:2} {s.task}" for s in stages],
        "Disk, GB": [_number(s.disk, 1e9) for s in stages],
        "GPU h": [_number(s.gpu, 3600) for s in stages],
        "CPU h": [_number(s.cpu, 3600) for s in stages],
        "Wall h": [_short(s.wall / 3600) if s.wall else "" for s in stages],
        "GPU memory, GB": [_number(s.memory, 1e9) for s in stages],
    }
    for title, field, unit in (
        ("Disk, GB", "disk", 1e9),
        ("GPU h", "gpu", 3600),
        ("CPU h", "cpu", 3600),
    ):
        values = [getattr(stage, field) for stage in stages]
        cells[title].append(_short(sum(f.value for f in values if f) / unit))
    cells["Stage"].append("   all")
    cells["Wall h"].append(_short(sum(s.wall for s in stages) / 3600))
    cells["GPU memory, GB"].append(
        _short(max(s.memory.value for s in stages if s.memory) / 1e9)
    )
    notes = [f"! {note}" for stage in stages for note in stage.notes]
    return "\n".join([*lines, "", *columns(cells), "", *notes])


def targets_table(targets: Sequence[StoredTarget]) -> str:
    """Sizes of stored soft targets, which no stage writes yet."""
    cells = {
        "If soft targets were stored (not supported yet)": [t.name for t in targets],
        "Disk, GB": [_number(t.size, 1e9) for t in targets],
    }
    return "\n".join([*columns(cells), ""])


def explained(stages: Sequence[Stage]) -> str:
    """Every figure of the table with its formula."""
    lines = []
    for stage in stages:
        lines.append(f"Stage {stage.number}, {stage.task}")
        for name, unit, scale in (
            ("disk", "GB", 1e9),
            ("gpu", "GPU h", 3600),
            ("cpu", "CPU h", 3600),
            ("memory", "GB", 1e9),
        ):
            figure = getattr(stage, name)
            if figure is not None:
                text = f"{name} {_number(figure, scale)} {unit} = {figure.formula}"
                lines += textwrap.wrap(
                    text, 88, initial_indent="  ", subsequent_indent="      "
                )
    return "\n".join(lines)


def _number(figure: Figure | None, scale: float) -> str:
    return "" if figure is None else _short(figure.value / scale)


def _short(value: float) -> str:
    """Two significant digits; estimates are no better."""
    if value >= 99.5:
        return f"{value:.0f}"
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 0.01 else "<0.01"
