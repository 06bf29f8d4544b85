"""Transcripts that allow several readings, aligned as NIST's sclite does it.

    A { B / C D / @ } (E) FRA-       B or C D or nothing; E may be left out; FRA- is a
                                     fragment, right where a word begins with FRA

This is `sclite -F -D`: the cheapest alignment of any reading of the reference with any
of the hypothesis; a deletion or insertion costs 3 (2 of an optional word, 0.001 of @),
a substitution 4. An optional word that is left out, or that a hypothesis has and no
reference, counts as correct.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NOTHING = "@"
# In thousandths, so that equal costs are equal.
INDEL, OPTIONAL, NULL, NULLS, SUBSTITUTION = 3000, 2000, 1, 1000, 4000


class Arc(NamedTuple):
    """A word of a transcript and the arcs that may come before it."""

    word: str
    optional: bool
    before: tuple[int, ...]  # 0 is the beginning


class Network(NamedTuple):
    """All readings of a transcript; arc 0 is no word but the beginning."""

    arcs: list[Arc]
    last: tuple[int, ...]  # arcs that end a reading


def parse(text: str) -> Network:
    """Read a transcript; case does not matter.

    Raises:
        ValueError: braces that do not match.
    """
    tokens = re.findall(r"[{}/]|\([^()\s]*\)|[^\s{}/]+", text.lower())
    arcs = [Arc("", False, ())]
    last, rest = _sequence(arcs, (0,), tokens)
    if rest:
        raise ValueError(f"'{text}': no {{ stands before '{rest[0]}'")
    return Network(arcs, last)


def _sequence(
    arcs: list[Arc], before: tuple[int, ...], tokens: list[str]
) -> tuple[tuple[int, ...], list[str]]:
    """Append words up to the end of a reading; returns its last arcs, what is left."""
    while tokens and tokens[0] not in ("}", "/"):
        token, *tokens = tokens
        if token == "{":
            before, tokens = _alternatives(arcs, before, tokens)
            continue
        optional = token[0] == "(" and token[-1] == ")"
        arcs.append(Arc(token[1:-1] if optional else token, optional, before))
        before = (len(arcs) - 1,)
    return before, tokens


def _alternatives(
    arcs: list[Arc], before: tuple[int, ...], tokens: list[str]
) -> tuple[tuple[int, ...], list[str]]:
    ends: tuple[int, ...] = ()
    while True:
        last, tokens = _sequence(arcs, before, tokens)
        ends += last
        if not tokens:
            raise ValueError("a { has no }")
        mark, *tokens = tokens
        if mark == "}":
            return ends, tokens


def errors(reference: Network, hypothesis: Network) -> tuple[int, int, int, int]:
    """(substitutions, deletions, insertions, reference words) of the best alignment.

    Reference words are those of the reading that was aligned; of optional words those
    that the hypothesis has in excess count too, as in sclite's table.
    """
    # cost[a][b]: alignments that end with arc a of the reference and b of the
    # hypothesis; back[a][b]: the arcs before. Equal costs are resolved as in sclite:
    # substitution, insertion, deletion; of several arcs before the first.
    rows, columns = reference.arcs, hypothesis.arcs
    cost = [[0] * len(columns) for _ in rows]
    back = [[(0, 0)] * len(columns) for _ in rows]
    for b in range(1, len(columns)):
        least, at = min((cost[0][p], p) for p in columns[b].before)
        cost[0][b], back[0][b] = least + _alone(columns[b]), (0, at)
    for a in range(1, len(rows)):
        least, at = min((cost[p][0], p) for p in rows[a].before)
        cost[a][0], back[a][0] = least + _alone(rows[a]), (at, 0)
        for b in range(1, len(columns)):
            cost[a][b], back[a][b] = _best(cost, a, b, rows[a], columns[b])
    return _count(reference, hypothesis, cost, back)


def _best(
    cost: list[list[int]], a: int, b: int, row: Arc, column: Arc
) -> tuple[int, tuple[int, int]]:
    """The cheapest way to end with two arcs, and the arcs before."""
    both = min((cost[p][q], p, q) for p in row.before for q in column.before)
    deleted = min((cost[p][b], p) for p in row.before)
    inserted = min((cost[a][q], q) for q in column.before)
    together = both[0] + _pair(row, column)
    without_row = deleted[0] + _alone(row)
    without_column = inserted[0] + _alone(column)
    if together <= without_row and together <= without_column:
        return together, both[1:]
    if without_row < without_column:
        return without_row, (deleted[1], b)
    return without_column, (a, inserted[1])


def _alone(arc: Arc) -> int:
    """What a word costs that has no partner."""
    if arc.word == NOTHING:
        return NULL
    return OPTIONAL if arc.optional else INDEL


def _pair(row: Arc, column: Arc) -> int:
    if row.word == column.word == NOTHING:
        return NULLS
    return 0 if _equal(row.word, column.word) else SUBSTITUTION


def _equal(one: str, other: str) -> bool:
    """Whether two words are the same, or one is a fragment of the other."""
    for fragment, word in ((one, other), (other, one)):
        if len(fragment) > 1 and fragment[0] == "-":
            return word.endswith(fragment[1:])
        if len(fragment) > 1 and fragment[-1] == "-":
            return word.startswith(fragment[:-1])
    return one == other


def _count(
    reference: Network,
    hypothesis: Network,
    cost: list[list[int]],
    back: list[list[tuple[int, int]]],
) -> tuple[int, int, int, int]:
    ends = ((cost[a][b], a, b) for a in reference.last for b in hypothesis.last)
    _, a, b = min(ends)
    correct = substituted = deleted = inserted = 0
    while (a, b) != (0, 0):
        row, column = reference.arcs[a], hypothesis.arcs[b]
        before = back[a][b]
        alone = column if before[0] == a else row if before[1] == b else None
        if alone is None:
            both = row.word == column.word == NOTHING
            right = _pair(row, column) == 0
            correct += right and not both
            substituted += not right and not both
        elif alone.word != NOTHING:
            correct += alone.optional
            inserted += not alone.optional and alone is column
            deleted += not alone.optional and alone is row
        a, b = before
    return substituted, deleted, inserted, correct + substituted + deleted
