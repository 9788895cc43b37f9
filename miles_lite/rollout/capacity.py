"""How many rollouts run at once, as the engines bear it: looks at them while the run goes on.

Invariant: a look that does not come in time changes nothing, nor does one while weights change. What a person must hear
is said once. What engines tell is asked for once, for whoever wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping

import ray

from miles_lite.config.options import Config
from miles_lite.engine.reported_load import Load, together
from miles_lite.scheduler.concurrency import LOOK_SECONDS, Concurrency, EngineLoad
from miles_lite.stack.engine_plans import plan_engines

PATIENCE = 30.0
"""Seconds that a look may take."""
IN_A_ROW = 3
"""Looks that see the same before it is said."""
Loads = Mapping[int, Load | None]
"""Of each engine, by its index; None where it does not say. Empty while nobody knows."""


def concurrency_of(config: Config) -> Concurrency | None:
    """What finds how many rollouts run at once, if it is to be found."""
    if not config.scheduling.finds_concurrency:
        return None
    most = config.rollouts.num_agent_workers * config.rollouts.agent_concurrency
    return Concurrency(engines=len(plan_engines(config.topology)), most=most)


class Capacity:
    """Feeds `found`, where the number is to be found, with what `loads` say, and has `resize` told what comes of it."""

    def __init__(
        self,
        *,
        loads: Callable[[], Awaitable[Loads]],
        record: Callable[[Loads], None],
        running: Callable[[], int],
        resize: Callable[[int], None],
        notify: Callable[[str], None],
        found: Concurrency | None,
    ) -> None:
        """`running`: the rollouts at once; `notify` takes what a person must hear, `record` every look, in a thread.
        Without `found` the number is given."""
        self._loads, self._running, self._resize, self._notify, self._found = loads, running, resize, notify, found
        self._record = record
        self._overfull = self._silent = 0

    async def poll(self) -> None:
        """Look again and again. Never returns."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            loads: Loads = {}
            with contextlib.suppress(TimeoutError, ray.exceptions.RayError):
                async with asyncio.timeout(PATIENCE):
                    loads = await self._loads()
            told = [load for load in loads.values() if load is not None]
            self.update(together(told) if told else None)
            await asyncio.to_thread(self._record, loads)

    def update(self, load: Load | None) -> None:
        """What the engines bear; None where none says."""
        self._silent = self._silent + 1 if load is None else 0
        if load is None:
            if self._silent == IN_A_ROW and self._found is not None:
                self._notify(f"no engine tells its load: {self._found.rollouts} rollouts at once until one does")
            return
        running = self._running()
        if not running:  # what engines tell is of a while ago
            return
        if self._found is not None:
            look = EngineLoad(kv_use=load.kv_use, queued=load.queued, preempted=load.preempted, running=running)
            self._resize(self._found.update(look))
            return
        self._overfull = self._overfull + 1 if load.queued > load.running else 0
        if self._overfull == IN_A_ROW:
            self._notify(
                f"engines run {load.running} requests at once and {load.queued} wait in their queues, of {running} "
                f"rollouts: --rollout-concurrency {max(1, running - load.queued)} would fit, auto finds it"
            )
