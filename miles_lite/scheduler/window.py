"""Which ready groups make the next batch: windowed FIFO within a hard staleness bound.

Invariant (earliest deadline first is feasible): of the groups whose first member started at version v or before, so
many at most are open that the batches up to step v + S can take them all. `pick` gives only batches that keep it so;
`Scheduler` opens only groups that do. Therefore no group is ever too old to be trained, and none is discarded.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter
from collections.abc import Mapping
from typing import Any

from miles_lite.scheduler.groups import UNSTARTED, Open
from miles_lite.scheduler.schedule import Schedule


class Window:
    """The open groups, seen by the trainer. O(log n) a change; `pick` is O(S) where there is no batch, else O(P)."""

    def __init__(self, schedule: Schedule, groups: Mapping[int, Open]) -> None:
        self._schedule, self._groups = schedule, groups
        self._ready: list[tuple[int, int]] = []
        """Version and ordinal of those that a batch may take, in order."""
        self._beyond: list[tuple[int, int]] = []
        """Ordinal and version of those past the window, a heap."""
        self._started: Counter[int] = Counter()
        """Open groups by the version that their first member started at."""
        self._oldest = 0
        """No group before this ordinal is unfinished."""

    @property
    def ready(self) -> int:
        return len(self._ready) + len(self._beyond)

    def started(self, group: Open) -> None:
        """Its first member did."""
        self._started[group.version] += 1

    def settled(self, group: Open) -> None:
        """It is worth training."""
        heapq.heappush(self._beyond, (group.ordinal, group.version))

    def left(self, group: Open) -> None:
        """It is not open any longer, and was not ready."""
        if group.version != UNSTARTED:
            self._forget(group.version)

    def clear(self) -> None:
        """No group is open any longer."""
        self._ready, self._beyond = [], []
        self._started.clear()

    def pick(self, step: int, *, opened: int, rest: bool = False) -> list[int]:
        """Ordinals of the batch of `step`, in order; [] where there is none. `opened`: ordinals given out so far.

        With `rest` nothing else will come: what is ready, be it less than a batch."""
        self._advance(opened)
        size = self._schedule.groups_per_step
        if rest:
            size = min(size, len(self._ready))
        if not size or len(self._ready) < size or not (rest or self._leaves_room(step)):
            return []
        taken, self._ready = self._ready[:size], self._ready[size:]
        for version, _ in taken:
            self._forget(version)
        return sorted(ordinal for _, ordinal in taken)

    def _advance(self, opened: int) -> None:
        """Move the window to the oldest unfinished group, and what came into it among those that can be taken."""
        while self._oldest < opened and self._finished(self._oldest):
            self._oldest += 1
        end = self._oldest + self._schedule.window
        if self._oldest == opened or self._schedule.gives_up_extra:
            end = opened
        while self._beyond and self._beyond[0][0] < end:
            ordinal, version = heapq.heappop(self._beyond)
            bisect.insort(self._ready, (version, ordinal))

    def _finished(self, ordinal: int) -> bool:
        group = self._groups.get(ordinal)
        return group is None or group.settled

    def _leaves_room(self, step: int) -> bool:
        """Whether what the batch leaves behind can be trained in time by those after it."""
        if self._schedule.gives_up_extra:
            return True
        size, open_ = self._schedule.groups_per_step, 0
        for version in sorted(self._started):
            open_ += self._started[version]
            taken = min(size, bisect.bisect_left(self._ready, (version + 1, 0)))
            if open_ - taken > (version + self._schedule.max_staleness - step) * size:
                return False
        return True

    def restored(self, group: Open) -> None:
        """It was open before this window was made."""
        if group.version != UNSTARTED:
            self.started(group)
        if group.settled:
            self.settled(group)

    def as_json(self) -> dict[str, Any]:
        return {"oldest": self._oldest, "ready": [ordinal for _, ordinal in self._ready]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What it was when `state` was taken: the rest follows from the open groups."""
        for group in self._groups.values():
            self.restored(group)
        self._oldest, inside = state["oldest"], set(state["ready"])
        self._ready = sorted((version, ordinal) for ordinal, version in self._beyond if ordinal in inside)
        self._beyond = sorted(one for one in self._beyond if one[0] not in inside)

    def _forget(self, version: int) -> None:
        self._started[version] -= 1
        if not self._started[version]:
            del self._started[version]
