"""Which worker takes a request: the one its key had before, else the one the policy chooses.

Invariant: only a worker that is ready and has room is chosen; at most `max_keys` keys are remembered, the least
recently used is forgotten first.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from miles_lite.config.choices import PolicyName, WorkerType
from miles_lite.router.backend import Worker

Policy: TypeAlias = Callable[[Sequence[Worker]], Worker]
Target: TypeAlias = tuple[Worker, ...]
"""Who answers a request: one regular worker, or a prefill and a decode worker."""

MAX_KEYS = 100_000
ALONE, PAIR = (WorkerType.REGULAR,), (WorkerType.PREFILL, WorkerType.DECODE)


class NoWorkerError(Exception):
    """Nobody can take the request, whatever time passes. The message says why."""


def least_in_flight(workers: Sequence[Worker]) -> Worker:
    """The one with the fewest requests in flight; among equals the one whose turn is longest ago."""
    return min(workers, key=_load)


def round_robin(workers: Sequence[Worker]) -> Worker:
    """The one whose turn is longest ago."""
    return min(workers, key=lambda one: one.turn)


def power_of_two(workers: Sequence[Worker]) -> Worker:
    """The less loaded of two drawn at random (Mitzenmacher 2001)."""
    return least_in_flight(random.sample(workers, 2) if len(workers) > 1 else workers)


POLICIES: Mapping[PolicyName, Policy] = {
    PolicyName.LEAST_IN_FLIGHT: least_in_flight,
    PolicyName.ROUND_ROBIN: round_robin,
    PolicyName.POWER_OF_TWO: power_of_two,
}


class Placement:
    """Sticky by routing key, over a policy, under a cap of requests in flight per worker."""

    def __init__(
        self, policy: PolicyName = PolicyName.LEAST_IN_FLIGHT, *, most: int | None = None, max_keys: int = MAX_KEYS
    ) -> None:
        """most: requests in flight that one worker may have; None: any number."""
        self._policy = POLICIES[policy]
        self._most = most
        self._max_keys = max_keys
        self._turns = itertools.count(1)
        self._last: OrderedDict[str, Target] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def choose(self, workers: Iterable[Worker], key: str | None) -> Target | None:
        """A target among `workers`, remembered for `key`; None when those that could take it have no room.

        A pair is chosen where no regular worker is registered, its halves independently of each other. Raises
        NoWorkerError.
        """
        workers = list(workers)
        free = [[one for one in some if one.room(self._most)] for some in _ready(workers)]
        if not all(free):
            return None
        last = self._last.get(key, ()) if key else ()
        target = [next((one for one in last if one in some), None) or self._policy(some) for some in free]
        for worker in target:
            worker.turn = next(self._turns)
        if key:
            self._remember(key, tuple(target))
        return tuple(target)

    def forget(self, worker: Worker) -> None:
        """Drop the keys that stick to `worker`."""
        for key in [key for key, last in self._last.items() if worker in last]:
            del self._last[key]

    def _remember(self, key: str, target: Target) -> None:
        self._last[key] = target
        self._last.move_to_end(key)
        if len(self._last) > self._max_keys:
            self._last.popitem(last=False)


def _ready(workers: Sequence[Worker]) -> list[list[Worker]]:
    """Who could be each half of a target. Raises NoWorkerError where nobody could."""
    roles = ALONE if any(one.worker_type == WorkerType.REGULAR for one in workers) else PAIR
    ready = [[one for one in workers if one.worker_type == role and one.state == "ready"] for role in roles]
    if not all(ready):
        raise NoWorkerError(_reason(workers))
    return ready


def _load(worker: Worker) -> tuple[int, int]:
    return worker.in_flight, worker.turn


def _reason(workers: Sequence[Worker]) -> str:
    if not workers:
        return "no worker is registered"
    counts = Counter(one.worker_type for one in workers)
    prefill, decode = counts[WorkerType.PREFILL], counts[WorkerType.DECODE]
    if not counts[WorkerType.REGULAR] and not (prefill and decode):
        return f"{prefill} prefill and {decode} decode workers are registered: one of each is needed"
    said = {"unreachable": "cannot be reached", "stale": "has other weights", "draining": "is being removed"}
    states = [f"{one.url} {said[one.state]}" for one in workers if one.state in said]
    return f"no worker is ready: {'; '.join(states)}. They are asked again and come back by themselves"
