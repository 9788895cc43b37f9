"""A session server as a Ray actor: `ray.remote(SessionActor).options(name=...).remote(spec)`.

Invariant: from `start` to `stop` the actor holds the server's socket; a worker process of its own serves it.
"""

from __future__ import annotations

import asyncio

from miles_lite.process.addresses import actor_label
from miles_lite.session.server import SessionSpec
from miles_lite.session.supervised_server import Supervisor

__all__ = ["SessionActor", "SessionSpec"]


class SessionActor:
    """Sessions of a run, or a share of them; each actor has its own port, and a session's URL is its affinity."""

    def __init__(self, spec: SessionSpec) -> None:
        self._supervisor = Supervisor(spec)

    async def start(self) -> str:
        """The server's URL. Raises UserError for a model, role or port that cannot be used."""
        return await self._supervisor.start()

    async def steady(self) -> float | None:
        """Seconds since the worker process was last lost, infinite if it never was; None before `start`."""
        return self._supervisor.steady if self._supervisor.url else None

    async def watch(self) -> None:
        """Never returns: who waits for it learns of this actor's death at once."""
        await asyncio.Event().wait()

    async def stats(self) -> dict[str, float]:
        """Counters: turns, prompt_tokens, completion_tokens, roots_<reason>, sampling_overridden, engine_retries ..."""
        return await self._supervisor.stats()

    async def stop(self) -> None:
        await self._supervisor.stop()

    def __repr__(self) -> str:
        return actor_label("SessionActor", self._supervisor.spec.index)
