"""Estimates against measurements; docs/planning.md shows the tables."""

from __future__ import annotations

from benchmarks.plan_check import (
    fsdd_trainings,
    lattice_memories,
    lattice_times,
    step_memories,
)


def test_memory_of_dense_lattices():
    """If logits dominate; in smaller problems other tensors matter too."""
    rows = [r for r in lattice_memories() if "ours" not in r.name and r.measured > 200]
    assert len(rows) >= 7
    for row in rows:
        assert 0.95 < row.ratio < 1.05, row


def test_memory_of_lean_lattices():
    rows = [r for r in lattice_memories() if "ours" in r.name]
    assert len(rows) >= 30
    for row in rows:
        assert 0.5 < row.ratio < 2, row


def test_time_of_lean_lattices():
    rows = lattice_times()
    assert len(rows) >= 15
    for row in rows:
        assert 0.5 < row.ratio < 2, row


def test_trainings_on_fsdd():
    for row in fsdd_trainings():
        assert 0.5 < row.ratio < 2, row


def test_memory_of_a_training_step():
    for row in step_memories():
        assert 0.5 < row.ratio < 2, row
