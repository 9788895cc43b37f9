"""What a scheduler knows: a plain value, which JSON holds and `Scheduler.restore` takes back."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any, Self

from miles_lite.scheduler.groups import Open
from miles_lite.scheduler.protocol import AttemptId

Json = dict[str, Any]
LAST_STEPS = 8


@dataclass(slots=True)
class State:
    """The run as far as it has come.

    capacity  rollouts that may run at once
    version   the engines' weights
    served_at when they came, in seconds on the clock of `running`; None where that is not known
    took      seconds from one version to the next, of the last ones
    step      the batch that is given next
    wanted    whether the trainer waits for it
    stopped   why nothing is done any longer
    groups    the open ones, by ordinal, in order
    running   since when a rollout runs, in the order of their starts
    given     batches that the trainer has not finished
    passed    the highest ordinal that was given, and one: open groups before it were overtaken, so many of them
    active    groups of which a member has started and one has not ended
    returned  prompts that are dealt before others
    opened    groups since the last batch, or since the run went on
    dropped   groups since the last batch, by why
    """

    capacity: int
    version: int = 0
    served_at: float | None = None
    took: deque[float] = field(default_factory=lambda: deque(maxlen=LAST_STEPS))
    step: int = 0
    wanted: bool = False
    stopped: str = ""
    groups: dict[int, Open] = field(default_factory=dict)
    running: dict[AttemptId, float] = field(default_factory=dict)
    given: dict[int, list[Open]] = field(default_factory=dict)
    passed: int = 0
    overtaken: int = 0
    active: int = 0
    returned: deque[int] = field(default_factory=deque)
    opened: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def step_seconds(self) -> float:
        """From one version to the next: the median of the last ones, so that one that waited is no measure. Infinite
        where there were none."""
        return median(self.took) if self.took else inf

    def as_json(self) -> Json:
        return {name: getattr(self, name) for name in _PLAIN} | {
            "groups": [group.as_json() for group in self.groups.values()],
            "running": [[*who, since] for who, since in self.running.items()],
            "given": [[step, [group.as_json() for group in batch]] for step, batch in self.given.items()],
            "served_at": self.served_at,
            "took": list(self.took),
            "returned": list(self.returned),
            "dropped": dict(self.dropped),
        }

    @classmethod
    def of_json(cls, state: Json) -> Self:
        return cls(
            **{name: state[name] for name in _PLAIN},
            groups={group["ordinal"]: Open(**group) for group in state["groups"]},
            running={AttemptId(*who): since for *who, since in state["running"]},
            given={step: [Open(**group) for group in batch] for step, batch in state["given"]},
            served_at=state.get("served_at"),
            took=deque(state.get("took", ()), maxlen=LAST_STEPS),
            returned=deque(state["returned"]),
            dropped=Counter(state["dropped"]),
        )

    def serve(self, version: int, now: float) -> None:
        """The engines have `version`, if it is a later one."""
        if version > self.version:
            if self.served_at is not None:
                self.took.append(now - self.served_at)
            self.version, self.served_at = version, now

    def resumed(self, step: int, groups: Sequence[Open], again: Sequence[Open], *, capacity: int) -> Self:
        """What goes on after `step` trained batches with `groups`, those that are to be given `again` among them."""
        return dataclasses.replace(
            self,
            capacity=capacity,
            version=step,
            served_at=None,
            step=step,
            wanted=False,
            stopped="",
            groups={group.ordinal: group for group in groups},
            running={},
            given={},
            passed=min([self.passed, *(group.ordinal for group in again)]),
            opened=0,
        )

    def count(self) -> None:
        """`active` and `overtaken` from the groups."""
        self.active = sum(group.active for group in self.groups.values())
        self.overtaken = 0
        for ordinal in self.groups:
            if ordinal >= self.passed:
                break
            self.overtaken += 1


_PLAIN = ("capacity", "version", "step", "wanted", "stopped", "passed", "overtaken", "active", "opened")
