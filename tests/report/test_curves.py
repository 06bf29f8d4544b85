"""The plot of error rate against sparsity."""

import pytest
from matplotlib.figure import Figure

from espnet_kd.report.curves import Curve, plot_curves
from espnet_kd.report.scoring import score
from espnet_kd.report.summary import System, summarise

REFS = {f"u{i}": "a b c d e" for i in range(4)}


def run_with(errors: int):
    wrong = ["x"] * errors + ["."] * (20 - errors)
    words = [w if w == "x" else "abcde"[i % 5] for i, w in enumerate(wrong)]
    hyps = {u: " ".join(words[5 * i : 5 * i + 5]) for i, u in enumerate(REFS)}
    return score(REFS, hyps)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The axes of a plot with two curves that share the dense system."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)),
    )
    errors = {"dense": [2], "p60": [4, 6], "p90": [11, 9], "k60": [3], "k90": [7, 5]}
    rows = summarise(
        [System(name, [run_with(n) for n in runs]) for name, runs in errors.items()],
        resamples=100,
    )
    sparsity = dict(dense=0.0, p60=0.6, p90=0.9, k60=0.6, k90=0.9)
    curves = [
        Curve("plain", ["p90", "dense", "p60"]),
        Curve("with KD", ["dense", "k60", "k90"]),
    ]
    plot_curves(rows, sparsity, curves, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    return rows, figures[0].axes[0]


def test_a_line_goes_through_the_systems_by_sparsity(drawn):
    rows, axes = drawn
    plain, kd = (container.lines[0] for container in axes.containers)
    assert list(plain.get_xdata()) == pytest.approx([-0.5, 59.5, 89.5])
    assert list(kd.get_xdata()) == pytest.approx([0.5, 60.5, 90.5])
    assert list(plain.get_ydata()) == pytest.approx([10, 25, 50])
    assert list(kd.get_ydata()) == pytest.approx([10, 15, 30])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["plain", "with KD"]
    assert axes.get_ylabel() == "WER %"


def test_intervals_and_runs(drawn):
    rows, axes = drawn
    dense, sixty, ninety = axes.containers[0].lines[2][0].get_segments()
    assert sixty[:, 1] == pytest.approx([100 * rows[1].low, 100 * rows[1].high])
    assert dense[0, 1] < 10 < dense[1, 1]
    runs = [line for line in axes.lines if line.get_marker() == "x"]
    heights = [list(line.get_ydata()) for line in runs]
    assert heights[1] == pytest.approx([20, 30])
    assert heights[2] == pytest.approx([55, 45])
    colours = {line.get_color() for line in runs[:3]}
    assert colours == {axes.containers[0].lines[0].get_color()}
    assert axes.get_ylim()[1] > 100 * max(row.high for row in rows)
