"""A Ray actor that is replaced when it dies: the router, a session server, an agent worker.

Invariant: from `start` to `stop` one actor serves, or the next is on its way and whoever needs one waits for it; a call
to an actor that is being replaced does not fail for that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import ray

from miles_lite.errors import UserError, plain
from miles_lite.stack.actors import end_actor, lives, started

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""Longer than an actor is busy with one big thing, on a machine that is busy with others."""
BACK_SECONDS = 120.0
"""How long whoever needs an actor waits for the next one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0


class Kept:
    """One actor and its successors: it has `start`, `alive(seconds)`, `watch`, which never returns, and `stop`."""

    def __init__(self, what: str, make: Callable[[int], Any], *, start_seconds: float, say: Callable[[str], None]):
        """`make(restarts)` gives an actor that is not started yet; `say` takes what a person must hear."""
        self._what, self._make, self._start_seconds, self._say = what, make, start_seconds, say
        self._actor: Any = None
        self._serving = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.told: Any = None
        self.restarts = 0

    async def start(self) -> Any:
        """What the actor's `start` returns, which `told` is from then on. Raises UserError."""
        await self._launch()
        self._keeping = asyncio.create_task(self._keep())
        return self.told

    async def serving(self) -> Any:
        """The actor that serves. Raises UserError when none does for BACK_SECONDS."""
        try:
            await asyncio.wait_for(self._serving.wait(), BACK_SECONDS)
        except TimeoutError:
            raise UserError(f"waited {BACK_SECONDS:.0f} s for {self._what} to be replaced; see its log") from None
        return self._actor

    async def stood(self, restarts: int, seconds: float) -> bool:
        """Whether the actor of that time, counted in `restarts` and `seconds` ago, serves to this moment, and lost no
        process of its own meanwhile."""
        same = restarts == self.restarts and self._serving.is_set()
        return same and await lives(self._actor, SILENCE_SECONDS, unbroken=seconds)

    async def renewed(self, restarts: int) -> None:
        """Return once there is a later actor than that of `restarts`, or that one lives after all. Raises UserError as
        `serving` does."""
        while self.restarts == restarts and not await lives(self._actor, SILENCE_SECONDS):
            await asyncio.sleep(0.05)
        await self.serving()

    async def stop(self) -> None:
        """End it. Idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        actor, self._actor = self._actor, None
        if actor is not None:
            await end_actor(actor)

    async def _keep(self) -> None:
        while True:
            await _ended(self._actor)
            lost = time.monotonic()
            self._serving.clear()
            self._say(f"{self._what} has ended; replacing it")
            await self._replace()
            self._say(f"{self._what} serves again after {time.monotonic() - lost:.1f} s")

    async def _replace(self) -> None:
        """Try until one serves: what stood in the way, such as a port that is not free yet, may go."""
        pause = _FIRST_PAUSE
        while True:
            self.restarts += 1
            await end_actor(self._actor)
            try:
                return await self._launch()
            except (UserError, ray.exceptions.RayError) as error:
                log.warning("%s does not come back, and is tried again: %s", self._what, plain(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _launch(self) -> None:
        self._actor = self._make(self.restarts)
        self.told = await started(self._actor, self._what, self._start_seconds)
        self._serving.set()


async def _ended(actor: Any) -> None:
    """Return as soon as an actor is dead, or has not answered for SILENCE_SECONDS."""
    watching = asyncio.ensure_future(_died(actor))
    try:
        while not (await asyncio.wait({watching}, timeout=LOOK_SECONDS))[0]:
            if not await lives(actor, SILENCE_SECONDS):
                return
    finally:
        watching.cancel()


async def _died(actor: Any) -> None:
    try:
        await actor.watch.remote()
    except ray.exceptions.RayActorError:
        return
