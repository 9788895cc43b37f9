"""What a row's tokens see, however it is cut."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.train.layout import Layout, packed, padded, shard, shares
from miles_lite.train.radix_tree import place, sort


def seen(layout: Layout, keys: np.ndarray) -> list[list[int]]:
    """Per query, the keys it sees in order; `keys` says what stands where the layout's keys do."""
    starts = [0, *accumulate(layout.pieces)]
    result = []
    for queries, pieces in zip(layout.queries, layout.keys, strict=True):
        own = [int(keys[at]) for piece in pieces for at in range(starts[piece], starts[piece + 1])]
        result += [own[: len(own) - queries + query + 1] for query in range(queries)]
    return result


def test_packed_sequences_see_themselves() -> None:
    layout = packed([2, 0, 3])
    assert seen(layout, np.arange(5)) == [[0], [0, 1], [2], [2, 3], [2, 3, 4]]
    assert layout.pairs == 9


branching = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8).map(np.array), min_size=1, max_size=6)


@settings(max_examples=50)
@given(branching, st.integers(1, 4))
def test_shares_of_a_row_see_what_the_row_does(sequences: list[np.ndarray], world: int) -> None:
    row, _ = place(sort(sequences), [len(each) for each in sequences])
    whole = padded(row, 2 * world)
    expected = seen(whole, np.arange(whole.tokens))
    owned = [[at for stretch in stretches for at in stretch] for stretches in shares(whole.tokens, world=world)]
    gathered = np.array([at for each in owned for at in each])
    assert sorted(gathered) == list(range(whole.tokens))
    for rank, mine in enumerate(owned):
        share = shard(whole, rank=rank, world=world)
        assert share.tokens == len(mine)
        assert seen(share, gathered) == [expected[at] for at in mine]
    assert sum(shard(whole, rank=rank, world=world).pairs for rank in range(world)) == whole.pairs


def test_zig_zag_shares_of_one_sequence_are_equal_work() -> None:
    shared = [shard(packed([64]), rank=rank, world=4).pairs for rank in range(4)]
    assert len(set(shared)) == 1
