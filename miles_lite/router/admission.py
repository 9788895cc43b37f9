"""Who may be forwarded now: requests wait here, fairly, while every worker is full.

Invariant: a request that waits is placed before a later one of the same key, and keys take turns, so that one client's
burst cannot hold up another's single request. Nobody waits longer than the bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection

from miles_lite.router.backend import Worker
from miles_lite.router.policies import NoWorkerError, Placement, Target
from miles_lite.router.registry import Registry

Waiter = asyncio.Future[Target]


class QueueFullError(Exception):
    """The request waited as long as it may. The message says for what."""


class Admission:
    """Places requests, counts them in flight, and queues those that find no room."""

    def __init__(self, registry: Registry, placement: Placement, *, patience: float) -> None:
        """patience: seconds a request may wait for room."""
        self._registry = registry
        self._placement = placement
        self._patience = patience
        self._waiting: OrderedDict[str, deque[Waiter]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(not waiter.done() for waiters in self._waiting.values() for waiter in waiters)

    @contextlib.asynccontextmanager
    async def admit(self, key: str | None, *, without: Collection[Worker] = ()) -> AsyncIterator[Target]:
        """Hold a place on a target while the context lasts. `without`: workers that are not to be tried again.

        Raises NoWorkerError when none could take it, QueueFullError when none had room in time.
        """
        target = None
        if without or self._next_key() is None:
            target = self._place([one for one in self._registry if one not in without], key)
        if target is None:
            target = await self._wait(key)
        try:
            yield target
        finally:
            self._release(target)

    def wake(self) -> None:
        """Room may have been made, or a worker may have come back: place who waits, keys in turn."""
        while (key := self._next_key()) is not None:
            try:
                target = self._place(self._registry, key or None)
            except NoWorkerError as error:
                self._take(key).set_exception(error)
                continue
            if target is None:
                return
            self._take(key).set_result(target)

    def _place(self, workers: Collection[Worker] | Registry, key: str | None) -> Target | None:
        target = self._placement.choose(workers, key)
        for worker in target or ():
            worker.in_flight += 1
        return target

    def _release(self, target: Target) -> None:
        for worker in target:
            worker.in_flight -= 1
            self._registry.settle(worker)
        self.wake()

    async def _wait(self, key: str | None) -> Target:
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key or "", deque()).append(waiter)
        try:
            async with asyncio.timeout(self._patience):
                return await waiter
        except BaseException as error:
            if not waiter.done():
                waiter.cancel()
            elif not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())  # placed, and given up in the same moment
            if isinstance(error, TimeoutError):
                raise QueueFullError(
                    f"every worker is full; waited {self._patience:g} s for room, {self.waiting} more requests wait"
                ) from None
            raise

    def _next_key(self) -> str | None:
        """The key whose turn it is; who gave up waiting is dropped."""
        while self._waiting:
            key, waiters = next(iter(self._waiting.items()))
            while waiters and waiters[0].done():
                waiters.popleft()
            if waiters:
                return key
            del self._waiting[key]
        return None

    def _take(self, key: str) -> Waiter:
        """The first waiter of `key`, whose turn is then behind the other keys'."""
        self._waiting.move_to_end(key)
        return self._waiting[key].popleft()
