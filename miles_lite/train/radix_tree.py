"""Sequences in one row, in which a prefix that several of them share stands once: a radix tree, of arrays.

Sequences are sorted; then what each shares with the one before it says the whole tree: it stands where that one stands
up to there, and goes on at the end of the row. The row is cut where somebody branches off, and the pieces are the
segments of a `Layout`, each behind its ancestors.

Invariant: a sequence's places hold its tokens in order, at any depth of the tree; equal prefixes of sorted sequences
have equal places, and nothing else has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from miles_lite.train.layout import Layout


@dataclass(frozen=True, slots=True)
class Shared:
    """Sequences in an order, and of each how many tokens it shares with the one before it; 0 of the first."""

    order: list[int]
    prefixes: list[int]


def unshared(count: int) -> Shared:
    """Sequences that share nothing, whatever they hold."""
    return Shared(list(range(count)), [0] * count)


def sort(sequences: Sequence[np.ndarray]) -> Shared:
    """Sequences sorted, each an array [T, ...] of one dtype and width per token: neighbours share most."""
    flat = [np.ascontiguousarray(sequence).reshape(len(sequence), -1).view(np.uint8) for sequence in sequences]
    order = sorted(range(len(flat)), key=lambda number: flat[number].tobytes())
    prefixes = [common_prefix(flat[before], flat[number]) for before, number in pairwise(order)]
    return Shared(order, [0, *prefixes] if order else [])


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """Leading elements that two arrays [T, W] have in common."""
    length = min(len(one), len(other))
    differs = one[:length].reshape(-1) != other[:length].reshape(-1)
    first = int(differs.argmax()) if len(differs) else 0
    return first // one.shape[1] if len(differs) and differs[first] else length


def cut(shared: Shared, lengths: Sequence[int], *, limit: int) -> list[Shared]:
    """Rows of about `limit` tokens; `lengths` are by number of the sequence.

    Sequences stay in order. One that would make a row longer than that begins another, where it has its prefix again;
    unless it shares half of itself: then the row grows.
    """
    rows: list[Shared] = []
    room = 0
    for number, prefix in zip(shared.order, shared.prefixes, strict=True):
        more = lengths[number] - prefix
        if not rows or (more > room and 2 * prefix < lengths[number]):
            rows.append(Shared([], []))
            prefix, room, more = 0, limit, lengths[number]
        rows[-1].order.append(number)
        rows[-1].prefixes.append(prefix)
        room -= more
    return rows


def place(shared: Shared, lengths: Sequence[int]) -> tuple[Layout, list[np.ndarray]]:
    """The row's layout, and per sequence of `shared.order` where its tokens stand in it: int64 [length]."""
    places: list[np.ndarray] = []
    bounds: set[int] = set()
    size = 0
    for number, prefix in zip(shared.order, shared.prefixes, strict=True):
        end = size + lengths[number] - prefix
        before = places[-1][:prefix] if prefix else np.zeros(0, np.int64)
        branches = end > size and not (prefix and before[-1] + 1 == size)
        if branches:
            bounds |= {size} | ({int(before[-1]) + 1} if prefix else set())
        places.append(np.concatenate([before, np.arange(size, end)]))
        size = end
    return _layout(sorted(bounds), size, places), places


def _layout(starts: list[int], size: int, places: Sequence[np.ndarray]) -> Layout:
    """Of a row that is cut at `starts`: each piece sees those that somebody passes on his way to it."""
    keys: dict[int, tuple[int, ...]] = {}
    for where in places:
        pieces = np.searchsorted(starts, where, side="right") - 1
        path = tuple(pieces[np.flatnonzero(np.diff(pieces, prepend=-1))].tolist())
        keys |= {piece: path[: depth + 1] for depth, piece in enumerate(path)}
    lengths = tuple(end - start for start, end in pairwise([*starts, size]))
    return Layout(lengths, lengths, tuple(keys[piece] for piece in range(len(starts))))
