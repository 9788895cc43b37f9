"""A session server as a Ray actor: `ray.remote(SessionActor).options(name=...).remote(spec)`.

Invariant: the actor's event loop runs one server from `start` to `stop`.
"""

from __future__ import annotations

from miles_lite.session.server import SessionServer, SessionSpec

__all__ = ["SessionActor", "SessionSpec"]


class SessionActor:
    """Sessions of a run, or a share of them; each actor has its own port, and a session's URL is its affinity."""

    def __init__(self, spec: SessionSpec) -> None:
        self._server = SessionServer(spec)
        self._url = "not started"

    async def start(self) -> str:
        """The server's URL. Raises UserError for a model, role or port that cannot be used."""
        self._url = await self._server.start()
        return self._url

    async def load(self) -> int:
        """Live sessions."""
        return self._server.service.live() if self._server.service else 0

    async def stats(self) -> dict[str, float]:
        """Counters: turns, prompt_tokens, completion_tokens, roots_<reason>, sampling_overridden, engine_retries ..."""
        return self._server.service.stats() if self._server.service else {}

    async def stop(self) -> None:
        await self._server.stop()

    def __repr__(self) -> str:
        return f"SessionActor({self._server.spec.index}, {self._url})"
