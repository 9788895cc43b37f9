"""`RouterActor`: a supervised router inside a Ray actor.

Invariant: `start` and `stop` are idempotent; a stopped router has released its port.
"""

from __future__ import annotations

from typing import Any

import aiohttp

from miles_lite.router.app import RouterSpec
from miles_lite.router.supervise import Supervisor


class RouterActor:
    """One router. Callers wrap it: `ray.remote(RouterActor).options(...).remote(spec)`."""

    def __init__(self, spec: RouterSpec, *, gateway: bool = False) -> None:
        """gateway: generation goes through the Rust gateway."""
        self._supervisor = Supervisor(spec, gateway=gateway)

    def __repr__(self) -> str:
        return f"RouterActor({self._supervisor.url or 'not started'})"

    async def start(self) -> str:
        """Listen; returns the URL others are told. Raises UserError when the port is in use."""
        return await self._supervisor.start()

    async def data_url(self) -> str:
        """Where generation requests go: the gateway, else the router itself."""
        return self._supervisor.data_url

    async def alive(self) -> bool:
        """True once started: whatever ends the routing process, it is started again."""
        return bool(self._supervisor.url)

    async def workers(self) -> list[dict[str, Any]]:
        """What GET /workers lists."""
        async with aiohttp.ClientSession() as client, client.get(f"{self._supervisor.url}/workers") as reply:
            listed: list[dict[str, Any]] = (await reply.json())["workers"]
            return listed

    async def process(self) -> int | None:
        """The process that routes."""
        return self._supervisor.pid

    async def stop(self) -> None:
        """Release the port; requests in flight are cut."""
        await self._supervisor.stop()
