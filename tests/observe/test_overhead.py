"""Uncovered time: by hand, and against a count of covered unit cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.observe.overhead import uncovered


@pytest.mark.parametrize(
    ("intervals", "idle"),
    [
        ([], 10.0),
        ([(0, 10)], 0.0),
        ([(-5, 20)], 0.0),
        ([(2, 4), (3, 5)], 7.0),
        ([(8, 12), (-3, 1)], 7.0),
        ([(4, 4), (6, 5), (20, 30), (-9, -2)], 10.0),
    ],
)
def test_by_hand(intervals: list[tuple[float, float]], idle: float) -> None:
    assert uncovered(0.0, 10.0, intervals) == idle


POINT = st.integers(-5, 25)


@given(st.lists(st.tuples(POINT, POINT)))
def test_equals_counting_cells(intervals: list[tuple[int, int]]) -> None:
    covered = {cell for begin, until in intervals for cell in range(begin, until)}
    assert uncovered(0, 20, intervals) == len(set(range(20)) - covered)
