"""Rows of the report against figures computed by hand."""

import pytest

from espnet_kd.report.scoring import score
from espnet_kd.report.size import ModelSize
from espnet_kd.report.summary import Roles, System, summarise

REFS = {f"u{i}": "a b c d e" for i in range(4)}  # 20 words


def run_with(errors: int):
    """A run that has the first ``errors`` of its 20 words wrong."""
    hyps = {}
    for utterance, text in REFS.items():
        wrong = min(errors, 5)
        errors -= wrong
        hyps[utterance] = " ".join(["x"] * wrong + text.split()[wrong:])
    return score(REFS, hyps)


@pytest.fixture
def systems():
    return [
        System("big", [run_with(1)], ModelSize(1000, 4000)),
        System("plain", [run_with(n) for n in (9, 10, 11)], ModelSize(100, 400)),
        System("kd", [run_with(n) for n in (6, 6, 9)], ModelSize(100, 400)),
        System("all", [run_with(n) for n in (4, 6, 5)], ModelSize(100, 400)),
    ]


def test_figures_done_by_hand(systems):
    rows = summarise(systems, Roles("big", "plain", "all"), resamples=200)
    big, plain, kd, best = rows
    assert [row.name for row in rows] == ["big", "plain", "kd", "all"]
    assert plain.rate == pytest.approx(0.5)
    assert kd.run_rates == pytest.approx([0.3, 0.3, 0.45])
    assert kd.rate == pytest.approx(0.35) and kd.substitutions == pytest.approx(0.35)
    assert kd.spread == pytest.approx(0.15)
    assert kd.deviation == pytest.approx((2 * 0.05**2 / 2 + 0.1**2 / 2) ** 0.5)
    assert kd.reduction == pytest.approx(0.3)
    assert kd.gap_closed == pytest.approx((0.5 - 0.35) / (0.5 - 0.25))
    assert kd.compression == 10 and big.compression == 1
    assert kd.low <= kd.rate <= kd.high
    assert (big.spread, big.deviation) == (None, None)


def test_comparisons_leave_out_those_compared_with(systems):
    big, plain, kd, best = summarise(
        systems, Roles("big", "plain", "all"), resamples=50
    )
    for field in ("reduction", "p_value", "apart", "gap_closed"):
        assert getattr(plain, field) is None
        assert getattr(kd, field) is not None
    assert best.gap_closed is None and big.gap_closed is None


def test_apart_means_no_overlap_of_runs(systems):
    big, plain, kd, best = summarise(systems, Roles(baseline="plain"), resamples=50)
    assert best.apart and big.apart
    assert not kd.apart  # its worst run equals the baseline's best
    reverse = summarise(systems, Roles(baseline="all"), resamples=50)
    assert reverse[1].apart  # worse in every run


def test_a_ceiling_below_the_baseline_gives_no_share(systems):
    rows = summarise(systems, Roles(baseline="all", ceiling="plain"), resamples=50)
    assert rows[2].gap_closed is None


def test_without_roles_nothing_is_compared(systems):
    for row in summarise(systems, resamples=50):
        assert (row.compression, row.reduction, row.p_value) == (None, None, None)


@pytest.mark.parametrize(
    "roles, message",
    [
        (Roles(baseline="plane"), "baseline: plane is not a system; known: big"),
        (Roles(ceiling="all"), "ceiling: needs a baseline"),
    ],
)
def test_wrong_roles_are_refused(systems, roles, message):
    with pytest.raises(ValueError, match=message):
        summarise(systems, roles)


def test_wrong_systems_are_refused(systems):
    with pytest.raises(ValueError, match="two systems are called big"):
        summarise([systems[0], systems[0]])
    with pytest.raises(ValueError, match="needs the model of x"):
        summarise([System("x", [run_with(1)])], Roles(teacher="x"))
    other = System("y", [score({"v": "a"}, {"v": "a"})])
    with pytest.raises(ValueError, match="same utterances"):
        summarise([systems[0], other])
