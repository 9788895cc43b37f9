"""What others do, for a comparison on the same work: not pacing, but discarding what has become stale.

Invariant: it is told and tells what `Scheduler` does, so that the same world runs it.
"""

from __future__ import annotations

from collections import Counter

from miles_lite.scheduler import protocol as m
from miles_lite.scheduler.protocol import AttemptId, Command, End, Event
from miles_lite.scheduler.schedule import Schedule


class DiscardWhenStale:
    """Keeps its capacity full with whole groups, one at least, whatever waits for the trainer; drops a finished group
    older than the bound. A member that fails is run again, so that the difference is the schedule's alone."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._capacity = schedule, schedule.capacity
        self._step = self._version = self._groups = self._running = 0
        self._wanted = False
        self._left: Counter[int] = Counter()
        self._began: dict[int, int] = {}
        self._ready: list[int] = []

    def on(self, event: Event, now: float) -> list[Command]:
        """What is to be done about it."""
        commands: list[Command] = []
        match event:
            case m.Finished(who=who, failed=failed) if failed:
                return [m.Start(who._replace(attempt=who.attempt + 1), who.group)]
            case m.Finished(who=who):
                self._running -= 1
                self._left[who.group] -= 1
                if not self._left[who.group]:
                    commands += self._keep_fresh([who.group])
            case m.Wanted():
                self._wanted = True
            case m.Updated(version=version):
                self._version = version
            case m.Capacity(rollouts=rollouts):
                self._capacity = rollouts
        size = self._schedule.groups_per_step
        if self._wanted and len(self._ready) >= size:
            batch, others = self._ready[:size], self._ready[size:]
            commands.append(m.Deliver(self._step, tuple(batch)))
            self._step, self._wanted, self._ready = self._step + 1, False, []
            commands += self._keep_fresh(others)
        members = self._schedule.rollouts_per_group
        while self._running + members <= max(self._capacity, members):
            commands += self._start_group()
        return commands

    def _keep_fresh(self, groups: list[int]) -> list[Command]:
        """Those of `groups` that may be trained by the next step are ready; the others are dropped."""
        fresh = {group for group in groups if self._step - self._began[group] <= self._schedule.max_staleness}
        self._ready += [group for group in groups if group in fresh]
        return [m.Release(group, End.UNUSED, "stale") for group in groups if group not in fresh]

    def _start_group(self) -> list[Command]:
        group, members = self._groups, self._schedule.rollouts_per_group
        self._groups += 1
        self._running += members
        self._left[group], self._began[group] = members, self._version
        return [m.Start(AttemptId(group, member, 0), group) for member in range(members)]
