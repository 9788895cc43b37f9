"""A Ray actor that is replaced when it dies: the router, a session server, an agent worker.

Invariant: from `start` to `stop` one actor serves, or the next is on its way and whoever needs one waits for it; a call
to an actor that is being replaced does not fail for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import ray

from miles_lite.errors import UserError, plain
from miles_lite.process.patience import Patience, patiently
from miles_lite.process.remote import Remote
from miles_lite.stack.actors import Stops, Waiting, end_actor

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""Longer than an actor is busy with one big thing, on a machine that is busy with others."""
BACK_SECONDS = 120.0
"""How long whoever needs an actor waits for the next one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class Service(Stops, Protocol):
    """What can be kept."""

    async def start(self) -> str | None:
        """Serve; its URL, if it has one."""

    async def steady(self) -> float | None:
        """Seconds since it last lost a process of its own, infinite if it never did; None while it does not serve."""

    async def watch(self) -> None:
        """Never returns."""


Kind = TypeVar("Kind", bound=Service)


class RestartingActor(Generic[Kind]):
    """One actor of class `Kind` and its successors."""

    def __init__(
        self, what: str, make: Callable[[int], Remote[Kind]], *, start_seconds: float, waiting: Waiting
    ) -> None:
        """`make(restarts)` gives an actor that is not started yet; `waiting.notify` takes what a person must hear."""
        self._what, self._make, self._start_seconds, self._waiting = what, make, start_seconds, waiting
        self._obstacle = ""
        self._actor: Remote[Kind] | None = None
        self._served: asyncio.Future[Remote[Kind]] = asyncio.Future()
        self._keeping: asyncio.Task[None] | None = None
        self.address = ""
        self.restarts = 0

    async def start(self) -> str:
        """The actor's URL, if it has one, which `address` is from then on. Raises UserError."""
        await self._launch()
        self._keeping = asyncio.create_task(self._keep())
        return self.address

    async def serving(self) -> Remote[Kind]:
        """The actor that serves. Raises UnavailableError when none does for BACK_SECONDS: meanwhile it is the
        replacement that says what it waits for, once for all who need one."""
        if self._served.done():
            return self._served.result()
        patience = Patience(f"{self._what} to be replaced", BACK_SECONDS, log.info)
        return await patiently(asyncio.shield(self._served), patience, lambda: self._obstacle, hint="see its log")

    async def served_since(self, restarts: int, since: float) -> bool:
        """Whether the actor counted in `restarts` serves to this moment, and lost no process of its own `since` then
        (this process's `time.monotonic()`). One lost while the question was on its way counts."""
        if restarts != self.restarts or not self._served.done():
            return False
        steady = await _steady(self._served.result())
        return steady is not None and time.monotonic() - steady <= since

    async def renewed(self, restarts: int) -> None:
        """Return once there is a later actor than that of `restarts`, or that one lives after all. Raises UserError as
        `serving` does."""
        while self.restarts == restarts and not await self._lives():
            await asyncio.sleep(0.05)
        await self.serving()

    async def stop(self) -> None:
        """End it. Idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._end()

    async def _lives(self) -> bool:
        return self._served.done() and await _steady(self._served.result()) is not None

    async def _keep(self) -> None:
        while True:
            await _ended(await self.serving())
            lost = time.monotonic()
            self._served = asyncio.Future()
            self._waiting.notify(f"{self._what} has ended; replacing it")
            await self._replace()
            self._waiting.notify(f"{self._what} serves again after {time.monotonic() - lost:.1f} s")

    async def _replace(self) -> None:
        """Try until one serves: what stood in the way, such as a port that is not free yet, may go."""
        pause, patience = _FIRST_PAUSE, Patience(f"{self._what} to be replaced", BACK_SECONDS, self._waiting.notify)
        while True:
            self.restarts += 1
            await self._end()
            try:
                return await self._launch()
            except (UserError, ray.exceptions.RayError) as error:
                self._obstacle = str(plain(error))
                log.warning("%s does not come back, and is tried again: %s", self._what, self._obstacle)
                patience.over(lambda: self._obstacle)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _launch(self) -> None:
        self._actor = actor = self._make(self.restarts)
        service: Remote[Service] = actor
        told = await self._waiting.started(service, service.call(Service.start), self._what, self._start_seconds)
        self.address = told or ""
        self._served.set_result(actor)

    async def _end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            await end_actor(actor)


async def _ended(actor: Remote[Service]) -> None:
    """Return as soon as an actor is dead, or has not answered for SILENCE_SECONDS."""
    watching = asyncio.ensure_future(_died(actor))
    try:
        while not (await asyncio.wait({watching}, timeout=LOOK_SECONDS))[0]:
            if await _steady(actor) is None:
                return
    finally:
        watching.cancel()


async def _died(actor: Remote[Service]) -> None:
    with contextlib.suppress(ray.exceptions.RayActorError):
        await actor.call(Service.watch)


async def _steady(actor: Remote[Service]) -> float | None:
    """What it says; None when it is dead, or does not answer within SILENCE_SECONDS."""
    with contextlib.suppress(ray.exceptions.RayActorError, TimeoutError):
        async with asyncio.timeout(SILENCE_SECONDS):
            return await actor.call(Service.steady)
    return None
