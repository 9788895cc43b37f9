"""Keeps weights current: asks workers for their version, and admits those that have an accepted one.

Invariant: a worker that was set aside comes back only when it answers and its weight version is accepted; the first
request it is then given decides whether it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import orjson

from miles_lite.router.backend import Worker
from miles_lite.router.registry import Registry
from miles_lite.router.upstream import BROKEN, Pool, Request, UnreachableError

SAYS_VERSION = ("/model_info", "/get_model_info", "/server_info", "/get_server_info")


class Gate:
    """The version check of one router."""

    def __init__(self, registry: Registry, pool: Pool, *, seconds: float) -> None:
        """seconds: how long one worker may take to say its version."""
        self._registry = registry
        self._pool = pool
        self._seconds = seconds

    async def set_version(self, version: str, before: str | None) -> list[str]:
        """Accept `version`, and `before` while an update runs; returns the URLs of workers that have neither.

        Every worker is asked, and those with another version are set aside at once.
        """
        self._registry.accept(version, *([before] if before is not None and before != version else []))
        await self.check(self._registry)
        return [worker.url for worker in self._registry if worker.state == "stale"]

    async def check(self, workers: Iterable[Worker]) -> None:
        """Ask `workers`, at once. Who does not answer is taken at its last word."""
        await asyncio.gather(*(self._check(worker) for worker in workers if worker.state != "draining"))

    async def _check(self, worker: Worker) -> None:
        try:
            version = await self.version_of(worker.url)
        except (*BROKEN, TimeoutError, UnreachableError, ValueError):
            self._registry.mark_unverified(worker)
            return
        if not worker.gone:
            self._registry.admit(worker, version)

    async def version_of(self, url: str) -> str | None:
        """The weight version a worker reports; None for one that reports none.

        Raises UnreachableError, TimeoutError, ValueError or one of BROKEN when it does not answer as an engine does.
        """
        for path in SAYS_VERSION:
            async with asyncio.timeout(self._seconds), self._pool.send(url, Request("GET", path)) as reply:
                body = await reply.read()
            if reply.status >= 500:
                raise ValueError(f"{url}{path} answered {reply.status}")
            told = orjson.loads(body) if reply.status == 200 else None
            if isinstance(told, dict) and (version := told.get("weight_version")) is not None:
                return str(version)
        return None
