"""Which worker takes a request: the one its key had before, else the one with least in flight.

Invariant: a worker that is set aside or removed is never chosen; at most `max_keys` keys are remembered, the least
recently used is forgotten first.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable

from miles_lite.router.registry import Worker

MAX_KEYS = 100_000


class NoWorkerError(Exception):
    """Nobody can take the request. The message says why."""


class Placement:
    """Sticky by routing key, else least in flight; among equals the one whose turn is longest ago."""

    def __init__(self, *, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._turns = itertools.count(1)
        self._last: OrderedDict[str, Worker] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def choose(self, workers: Iterable[Worker], key: str | None) -> Worker:
        """A usable one of `workers`, remembered for `key`. Raises NoWorkerError."""
        usable = [worker for worker in workers if worker.worker_type == "regular" and not worker.set_aside]
        if not usable:
            raise NoWorkerError(_reason(workers))
        last = self._last.get(key) if key else None
        worker = last if last in usable else min(usable, key=lambda one: (one.in_flight, one.turn))
        worker.turn = next(self._turns)
        if key:
            self._remember(key, worker)
        return worker

    def forget(self, worker: Worker) -> None:
        """Drop the keys that stick to `worker`."""
        for key in [key for key, last in self._last.items() if last is worker]:
            del self._last[key]

    def _remember(self, key: str, worker: Worker) -> None:
        self._last[key] = worker
        self._last.move_to_end(key)
        if len(self._last) > self._max_keys:
            self._last.popitem(last=False)


def _reason(workers: Iterable[Worker]) -> str:
    counts = {"regular": 0, "prefill": 0, "decode": 0}
    for worker in workers:
        counts[worker.worker_type] += 1
    if counts["regular"]:
        return f"none of {counts['regular']} workers can be reached; they are probed and come back by themselves"
    if counts["prefill"] or counts["decode"]:
        return (
            f"no regular worker is registered ({counts['prefill']} prefill and {counts['decode']} decode workers are; "
            "this router does not pair them)"
        )
    return "no worker is registered"
