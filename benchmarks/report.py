"""results-*.json to RESULTS.md and plots."""

import json
import statistics
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.forms import KINDS, OURS
from benchmarks.problems import Shape
from espnet_kd.data.files import write_text, write_whole

DEVICES = ("cpu", "cuda")
MEGABYTE = 10**6


def write_json(results: dict, folder: Path, device: str) -> None:
    write_text(folder / f"results-{device}.json", json.dumps(results, indent=1) + "\n")


def _name(machine: dict) -> str:
    return machine["gpu"] or machine["cpu"]


def describe(machine: dict) -> str:
    """One paragraph on the machine."""
    versions = ", ".join(f"{x} {y}" for x, y in machine["versions"].items())
    mkl = machine["mkl_debug_cpu_type"]
    parts = [
        _name(machine),
        f"{machine['threads']} threads",
        versions,
        f"float32 GEMM {machine['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s",
        "MKL_DEBUG_CPU_TYPE " + ("not set" if mkl is None else f"= {mkl}"),
    ]
    return "; ".join(parts)


def _median(row: dict) -> float:
    return statistics.median(row["seconds"])


def _measure(rows: dict) -> str | None:
    """Our form, with which the others are compared."""
    return next((x for x in OURS if "seconds" in rows.get(x, {})), None)


def failures(results: dict) -> list[str]:
    """Forms that disagreed, or failed although what they need is installed."""
    found = []
    for case in results["cases"]:
        for name, row in case["rows"].items():
            reason = row.get("failure")
            if reason and not row.get("missing"):
                where = f"{Shape(*case['shape'])} {case['variant']} {case['kind']}"
                found.append(f"{where}: {name}: {reason}")
    return found


def _number(x: float) -> str:
    """Three digits."""
    return f"{x:.0f}" if x >= 100 else f"{x:#.3g}"


def _table(case: dict) -> list[str]:
    rows = case["rows"]
    base = rows.get(_measure(rows))
    lines = [
        "| form | s | / ours | / floor | extra MB | / ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "seconds" not in row:
            lines.append(f"| {name} | {row['failure'].replace('|', '/')} | | | | |")
            continue
        time, size = _median(row), row["extra_bytes"]
        if "gradient_deviation" in row:
            name += f" (norm of a gradient off by {row['gradient_deviation']:.0e})"
        cells = [name, _number(time)]
        cells.append(_number(time / _median(base)) if base else "")
        cells.append(_number(time / row["floor"]["seconds"]))
        cells.append(_number(size / MEGABYTE))
        cells.append(_number(size / base["extra_bytes"]) if base else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _heading(case: dict) -> list[str]:
    joint, teacher_joint = case["joints"]
    floors = [x["floor"] for x in case["rows"].values() if "floor" in x]
    lines = [f"### {Shape(*case['shape'])}, {case['variant']}", ""]
    if floors:
        floor = max(floors, key=lambda x: x["flops"])
        lines.append(
            f"{floor['nodes']} nodes, joint {joint}, teacher {teacher_joint}. Floor "
            f"{floor['flops'] / 1e12:.3g} TFLOP = {_number(floor['seconds'])} s at "
            f"{case['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s; "
            f"{_number(case['compulsory_bytes'] / MEGABYTE)} MB of inputs and "
            f"gradients, of which {_number(case['gradient_bytes'] / MEGABYTE)} MB of "
            "gradients are extra memory of every form. One tensor of logits: "
            f"{_number(case['logits_bytes'] / MEGABYTE)} MB."
        )
    if case["variant"] == "peaky":
        shares = [f"{float(x):g}: {y:.0%}" for x, y in case["visited"].items()]
        lines.append(
            "Nodes that the teacher's posterior visits with a probability above "
            + ", ".join(shares)
            + "."
        )
    return [*lines, ""]


def _section(results: dict, device: str) -> list[str]:
    lines = [
        f"# {device}",
        "",
        f"{describe(results['machine'])}.",
        "",
        f"    {results['command']}",
        "",
    ]
    if _plotted(results):
        lines += [f"![time and memory against V and T*U](cost-{device}.png)", ""]
    for name, kind in KINDS.items():
        cases = [x for x in results["cases"] if x["kind"] == name]
        if cases:
            lines += [f"## {kind.title} (`{name}`)", ""]
        for case in cases:
            lines += [*_heading(case), *_table(case), ""]
    return lines


INTRODUCTION = """\
Made by `python -m benchmarks.run`; `README.md` explains how to read it. Time is loss
and backward, the median of rounds that run every form in turn, in one process, first
round left out. Extra memory is the peak over the inputs, each form in a process of its
own. Ratios are to the first of "ours, Triton", "ours, k2" and "ours, torch" that ran.
All forms of a table agree on the loss and on the norm of each gradient, checked before
they were timed. Denormals are flushed to zero for every form
(`torch.set_flush_denormal`).
"""


def write_all(folder: Path) -> None:
    """RESULTS.md and the plots, from the results in the folder."""
    lines = ["# Cost of the losses", "", INTRODUCTION]
    for device in DEVICES:
        path = folder / f"results-{device}.json"
        if not path.exists():
            lines += [
                f"# {device}",
                "",
                "Not measured: no such device was available.",
                "",
            ]
            continue
        results = json.loads(path.read_text())
        plot(results, folder / f"cost-{device}.png")
        lines += _section(results, device)
    write_text(folder / "RESULTS.md", "\n".join(lines).rstrip() + "\n")


def _plotted(results: dict) -> list[dict]:
    """Cases of the plot: plain, collapsed."""
    return [
        x
        for x in results["cases"]
        if x["kind"] == "collapsed" and x["variant"] == "plain"
    ]


def _most_common(values: list) -> object:
    return Counter(values).most_common(1)[0][0]


def plot(results: dict, path: Path) -> None:
    """Time and memory of the forms of `collapsed` against V and against T*U."""
    cases = _plotted(results)
    if not cases:
        return
    size = _most_common([tuple(x["shape"][:3]) for x in cases])
    classes = _most_common([x["shape"][3] for x in cases])
    by_classes = [x for x in cases if tuple(x["shape"][:3]) == size]
    by_size = [x for x in cases if x["shape"][3] == classes]
    columns = [
        (by_classes, lambda x: x[3], "V (B={} T={} U={})".format(*size)),
        (by_size, lambda x: x[1] * x[2], f"T*U (V={classes})"),
    ]
    values = [
        (_median, _floor_of, "loss + backward [s]"),
        (_megabytes, _gradients_of, "extra memory [MB]"),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), sharey="row")
    for column, (some, abscissa, x_label) in enumerate(columns):
        some = sorted(some, key=lambda case: abscissa(case["shape"]))
        ticks = [abscissa(case["shape"]) for case in some]
        for line, (value, least, y_label) in enumerate(values):
            axis = axes[line][column]
            _draw(axis, some, ticks, value, least)
            axis.set(xscale="log", yscale="log", xlabel=x_label)
            axis.set_xticks(ticks, [str(x) for x in ticks])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(y_label)
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"{KINDS['collapsed'].title}, {_name(results['machine'])}")
    figure.tight_layout()
    write_whole(path, lambda part: figure.savefig(part, dpi=120))
    plt.close(figure)


def _megabytes(row: dict) -> float:
    return row["extra_bytes"] / MEGABYTE


def _floor_of(case: dict) -> float:
    return max(x["floor"]["seconds"] for x in case["rows"].values() if "floor" in x)


def _gradients_of(case: dict) -> float:
    return case["gradient_bytes"] / MEGABYTE


def _draw(axis, cases: list[dict], ticks: list[int], value, least) -> None:
    """One line per form, ours solid, the others dashed; and the floor of all."""
    for number, name in enumerate(KINDS["collapsed"].forms):
        points = [
            (x, value(row))
            for x, case in zip(ticks, cases)
            if "seconds" in (row := case["rows"].get(name, {}))
        ]
        if points:
            style = "-" if name.startswith("ours") else "--"
            axis.plot(*zip(*points), style, marker="o", color=f"C{number}", label=name)
    axis.plot(
        ticks, [least(case) for case in cases], "k:", label="floor, teacher computed"
    )
