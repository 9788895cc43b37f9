"""Which tokens of a row see which: packing, shared prefixes and context parallelism in one form, of integers alone.

A row of tokens is cut into query segments. A segment sees the pieces of keys that it names, in order of position, and
the last of its keys is its own last query: query i of n sees the first m - n + i + 1 of its m keys (lower-right causal,
as in FlashAttention from 2.1 on). Packed sequences see themselves, a branch itself behind its ancestors, a share of a
row itself behind whatever of the row comes before.

Invariant: no segment and no piece is empty; a layout says nothing of what the tokens are, nor where they compute.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True, slots=True)
class Layout:
    """Lengths in tokens.

    queries  of the row's query segments, in the row's order
    pieces   of the pieces of keys, in the order in which the keys stand
    keys     per segment: numbers of its pieces, in order of position
    """

    queries: tuple[int, ...]
    pieces: tuple[int, ...]
    keys: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Of the row."""
        return sum(self.queries)

    @property
    def reach(self) -> tuple[int, ...]:
        """Per segment, how many keys its last query sees: all of its own."""
        return tuple(sum(self.pieces[piece] for piece in pieces) for pieces in self.keys)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        return sum(n * m - n * (n - 1) // 2 for n, m in zip(self.queries, self.reach, strict=True))


def packed(lengths: Sequence[int]) -> Layout:
    """Sequences one behind the other, none of which sees another; empty ones are left out."""
    own = tuple(length for length in lengths if length)
    return Layout(own, own, tuple((number,) for number in range(len(own))))


def padded(layout: Layout, multiple: int) -> Layout:
    """A whole row filled up to a multiple, with a segment that sees nothing but itself."""
    more = -layout.tokens % multiple
    if not more:
        return layout
    return Layout((*layout.queries, more), (*layout.pieces, more), (*layout.keys, (len(layout.pieces),)))


def shares(tokens: int, *, world: int) -> list[tuple[range, range]]:
    """Per rank, the two stretches of a row that it computes: the r-th from the front and the r-th from the back of
    2 x world equal ones (zig-zag), so that all ranks see about as many keys. `tokens` is a multiple of 2 x world."""
    size, odd = divmod(tokens, 2 * world)
    assert not odd, f"a row of {tokens} tokens is cut into {2 * world} stretches: pad it"
    chunks = [range(at * size, (at + 1) * size) for at in range(2 * world)]
    return [(chunks[rank], chunks[-1 - rank]) for rank in range(world)]


def shard(layout: Layout, *, rank: int, world: int) -> Layout:
    """A rank's share of a whole row (see `shares`), whose keys are those of all ranks, in order of rank."""
    assert layout.queries == layout.pieces, "only a whole row is shared out"
    owned = shares(layout.tokens, world=world)
    spans, segment_of, spans_of = _spans(layout, owned)

    def within(stretches: Sequence[range]) -> list[int]:
        return [number for stretch in stretches for number, span in enumerate(spans) if span.start in stretch]

    gathered = [number for stretches in owned for number in within(stretches)]
    place = {number: at for at, number in enumerate(gathered)}
    mine = within(owned[rank])

    def seen(number: int) -> tuple[int, ...]:
        *ancestors, own = layout.keys[segment_of[number]]
        before = [span for piece in ancestors for span in spans_of[piece]]
        return tuple(place[span] for span in [*before, *(span for span in spans_of[own] if span <= number)])

    return Layout(
        queries=tuple(len(spans[number]) for number in mine),
        pieces=tuple(len(spans[number]) for number in gathered),
        keys=tuple(seen(number) for number in mine),
    )


def _spans(layout: Layout, owned: Sequence[Sequence[range]]) -> tuple[list[range], list[int], list[list[int]]]:
    """A whole row, cut where a segment or a stretch of `owned` begins; the segment of each span, and the spans of each
    segment."""
    starts = [0, *accumulate(layout.queries)]
    cuts = sorted({*starts, *(stretch.start for stretches in owned for stretch in stretches)})
    spans = [range(start, end) for start, end in pairwise(cuts)]
    segment_of = [bisect_right(starts, span.start) - 1 for span in spans]
    spans_of: list[list[int]] = [[] for _ in layout.queries]
    for number, segment in enumerate(segment_of):
        spans_of[segment].append(number)
    return spans, segment_of, spans_of
