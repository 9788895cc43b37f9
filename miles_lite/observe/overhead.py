"""The share of a step in which nothing useful happened.

Invariant: intervals may overlap, touch, be empty or lie outside the step; each second of the step counts once.
"""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[float, float]


def uncovered(start: float, end: float, intervals: Iterable[Interval]) -> float:
    """Seconds of [start, end] that no interval covers; all times on one clock, an interval is (from, until)."""
    idle, reached = 0.0, start
    for begin, until in sorted(interval for interval in intervals if interval[0] < interval[1]):
        idle += max(0.0, min(begin, end) - reached)
        reached = max(reached, min(until, end))
    return idle + max(0.0, end - reached)
