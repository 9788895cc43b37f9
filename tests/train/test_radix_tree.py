"""Shared prefixes stand once, at any depth."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.train.layout import packed
from miles_lite.train.radix_tree import cut, place, sort, unshared
from tests.train.test_layout import seen

sequences_of = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=10).map(lambda ids: np.array(ids, ">i4")), min_size=1, max_size=8
)


@settings(max_examples=100)
@given(sequences_of)
def test_every_sequence_sees_itself_and_each_prefix_stands_once(sequences: list[np.ndarray]) -> None:
    lengths = [len(each) for each in sequences]
    shared = sort(sequences)
    layout, places = place(shared, lengths)
    sees = seen(layout, np.arange(layout.tokens))
    prefixes = {tuple(each[: end + 1].tolist()) for each in sequences for end in range(len(each))}
    assert layout.tokens == len(prefixes)
    where: dict[int, tuple[int, ...]] = {}
    for number, own in zip(shared.order, places, strict=True):
        for end, at in enumerate(own):
            assert sees[at] == own[: end + 1].tolist()
            assert where.setdefault(int(at), tuple(sequences[number][: end + 1].tolist())) == tuple(
                sequences[number][: end + 1].tolist()
            )
    assert sorted(where) == list(range(layout.tokens))


def test_rows_of_another_width_keep_equal_tokens_apart() -> None:
    tokens = np.array([[1, 0], [2, 0]], ">i4"), np.array([[1, 0], [2, 9]], ">i4")
    layout, _ = place(sort(tokens), [2, 2])
    assert layout.tokens == 3


def test_only_branches_cut_a_row() -> None:
    chain = [np.arange(4), np.arange(9), np.arange(6)]
    layout, _ = place(sort(chain), [4, 9, 6])
    assert layout.queries == (9,)
    forked = [np.array([1, 2, 3, 4]), np.array([1, 2, 5])]
    layout, _ = place(sort(forked), [4, 3])
    assert (layout.queries, layout.keys) == ((2, 2, 1), ((0,), (0, 1), (0, 2)))


def test_nothing_shared_is_packed() -> None:
    layout, places = place(unshared(3), [3, 1, 2])
    assert layout == packed([3, 1, 2])
    assert np.concatenate(places).tolist() == list(range(6))


@settings(max_examples=100)
@given(sequences_of, st.integers(1, 12))
def test_a_row_that_is_long_ends_where_little_is_shared(sequences: list[np.ndarray], limit: int) -> None:
    lengths = [len(each) for each in sequences]
    shared = sort(sequences)
    rows = cut(shared, lengths, limit=limit)
    assert [number for row in rows for number in row.order] == shared.order
    known = dict(zip(shared.order, shared.prefixes, strict=True))
    for row in rows:
        layout, _ = place(row, lengths)
        grown = any(2 * known[number] >= lengths[number] for number in row.order[1:])
        assert len(row.order) == 1 or layout.tokens <= limit or grown
        assert row is rows[0] or 2 * known[row.order[0]] < lengths[row.order[0]]
        own = sort([sequences[number] for number in row.order])
        assert place(own, [lengths[number] for number in row.order])[0].tokens == layout.tokens
