"""In which order rollouts start: groups of earlier steps first, those of one step as `Schedule.order` says."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from miles_lite.scheduler.groups import UNSTARTED, Open
from miles_lite.scheduler.schedule import Schedule

Key = tuple[int, float, int]
"""Step (-1: before all, a group that holds a place of its own), expected tokens (negative), ordinal: the least comes
first."""


class Submission:
    """A queue of groups that have members to start; O(log n) each. What it holds follows from the open groups."""

    def __init__(self, schedule: Schedule, groups: Mapping[int, Open]) -> None:
        self._per_step = schedule.groups_per_step
        self._by_length = schedule.order == "longest"
        self._whole = schedule.granularity == "group"
        self._groups = groups
        self._heap: list[Key] = []
        self._keys: dict[int, Key] = {}
        self._tokens = self._answers = 0

    def put(self, group: Open) -> None:
        """Queue `group`, or move it to where it belongs by now."""
        begun = self._whole and group.version != UNSTARTED
        key = (-1 if begun else group.ordinal // self._per_step, -self._expected(group), group.ordinal)
        if self._keys.get(group.ordinal) != key:
            self._keys[group.ordinal] = key
            heapq.heappush(self._heap, key)

    def answered(self, group: Open, length: int) -> None:
        """A member of it ended: its siblings are likely to be as long."""
        self._tokens += length
        self._answers += 1
        if self._by_length and group.waiting:
            self.put(group)

    def first(self) -> Open | None:
        """The group whose member starts next."""
        while self._heap:
            key = self._heap[0]
            group = self._groups.get(key[2])
            if group is not None and group.waiting and self._keys.get(group.ordinal) == key:
                return group
            heapq.heappop(self._heap)
            if group is None or (not group.waiting and self._keys.get(key[2]) == key):
                self._keys.pop(key[2], None)
        return None

    def _expected(self, group: Open) -> float:
        if not self._by_length:
            return 0.0
        if group.answered:
            return group.lengths / group.answered
        return self._tokens / max(1, self._answers)

    def as_json(self) -> list[Any]:
        return [self._tokens, self._answers, sorted(self._keys.values())]

    def restore(self, state: list[Any]) -> None:
        self._tokens, self._answers, keys = state
        self._heap = [(step, expected, ordinal) for step, expected, ordinal in keys]
        self._keys = {key[2]: key for key in self._heap}
