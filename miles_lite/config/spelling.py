"""Which known name a mistyped one is near to."""

from __future__ import annotations

import operator
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """ ": did you mean X?", where one of `known` is a typing mistake away from `name`; else ""."""
    close, distance = min(((each, edits(name, each)) for each in known), key=operator.itemgetter(1), default=("", 99))
    return f": did you mean {close}?" if distance <= max(1, min(3, len(name) // 6)) else ""


def edits(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours from one to the other (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one):
        older, before, row = before, row, [at + 1]
        for to, each in enumerate(other):
            swap = at and to and letter == other[to - 1] and one[at - 1] == each
            costs = [before[to + 1] + 1, row[to] + 1, before[to] + (letter != each)]
            row.append(min([*costs, older[to - 1] + 1] if swap else costs))
    return row[-1]
