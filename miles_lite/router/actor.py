"""`RouterActor`: a supervised router inside a Ray actor.

Invariant: `start` and `stop` are idempotent; a stopped router has released its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

import aiohttp
import ray

from miles_lite.process.addresses import actor_label
from miles_lite.process.json_types import JsonObject
from miles_lite.router.gauges import WorkerGauges
from miles_lite.router.spec import RouterSpec
from miles_lite.router.supervised_router import Supervisor

SHOW_SECONDS = 5.0


class RouterActor:
    """One router. Callers wrap it: `ray.remote(RouterActor).options(...).remote(spec)`."""

    def __init__(self, spec: RouterSpec) -> None:
        self._supervisor = Supervisor(spec)
        self._showing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return actor_label("RouterActor")

    async def start(self) -> str:
        """Listen; returns the URL others are told. Raises UserError when the port is in use."""
        url = await self._supervisor.start()
        if self._showing is None and ray.is_initialized():
            self._showing = asyncio.create_task(self._show())
        return url

    async def data_url(self) -> str:
        """Where generation requests go: the gateway, else the router itself."""
        return self._supervisor.data_url

    async def steady(self) -> float | None:
        """Infinite once started: whatever ends the routing process, it is started again, and sessions ask again."""
        return math.inf if self._supervisor.url else None

    async def watch(self) -> None:
        """Never returns: who waits for it learns of this actor's death at once."""
        await asyncio.Event().wait()

    async def workers(self) -> list[JsonObject]:
        """What GET /workers lists."""
        async with aiohttp.ClientSession() as client, client.get(f"{self._supervisor.url}/workers") as reply:
            listed: list[JsonObject] = (await reply.json())["workers"]
            return listed

    async def process(self) -> int | None:
        """The process that routes."""
        return self._supervisor.pid

    async def stop(self) -> None:
        """Release the port; requests in flight are cut."""
        if self._showing:
            self._showing.cancel()
        await self._supervisor.stop()

    async def _show(self) -> None:
        """Keep Ray's gauges current."""
        gauges = WorkerGauges()
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # it is started again just now
                gauges.update(await self.workers())
            await asyncio.sleep(SHOW_SECONDS)
