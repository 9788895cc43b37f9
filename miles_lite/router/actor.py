"""`RouterActor`: the router inside a Ray actor, on the actor's own event loop.

Invariant: `start` and `stop` are idempotent; a stopped router has released its port.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from miles_lite.router.app import Router, RouterSpec, start_app
from miles_lite.router.proxy import Limits


class RouterActor:
    """One router. Callers wrap it: `ray.remote(RouterActor).options(...).remote(spec)`."""

    def __init__(self, spec: RouterSpec) -> None:
        self._spec = spec
        self._router = Router(Limits(idle=spec.timeout))
        self._runner: web.AppRunner | None = None
        self._url = ""

    def __repr__(self) -> str:
        return f"RouterActor({self._url or 'not started'})"

    async def start(self) -> str:
        """Listen; returns the URL others are told. Raises UserError when the port is in use."""
        if self._runner is None:
            self._runner, self._url = await start_app(self._router, self._spec)
        return self._url

    async def workers(self) -> list[dict[str, Any]]:
        """What GET /workers lists."""
        return [worker.as_dict() for worker in self._router.registry]

    async def stop(self) -> None:
        """Release the port; requests in flight are cut."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
