"""The side of a session server that a rollout speaks to: open, collect, delete.

Invariant: every call ends within its bound, and an error carries the server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import TracebackType

import aiohttp
import orjson

from miles_lite.errors import Where
from miles_lite.process import tracing
from miles_lite.process.admin_key import bearer
from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.sample import Failure, Sample
from miles_lite.session.samples.sample_file import decode_samples

RESTART_SECONDS, RETRY_PAUSE = 10.0, 0.25
"""How long, and how often, a server that does not answer is asked again: one that is restarted is back in less."""


class SessionError(RuntimeError):
    """The session server refused or failed."""

    where = Where.SESSION

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SessionClient:
    """One server at `url`; an async context manager."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 120.0,
        restart_seconds: float = RESTART_SECONDS,
        admin_key: str | None = None,
    ) -> None:
        """`timeout` bounds each call, `restart_seconds` how long a server that is not there is asked again; `admin_key`
        is what the server wants for opening a session."""
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._restart_seconds = restart_seconds
        self._admin_key = admin_key
        self._http: aiohttp.ClientSession | None = None
        self._keys: dict[str, str] = {}

    async def __aenter__(self) -> SessionClient:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    def base_url(self, session_id: str) -> str:
        """What an agent is given as its OpenAI base URL."""
        return f"{self.url}/sessions/{session_id}/v1"

    async def create(self, sampling: JsonMapping | None = None, *, turns: Json = None) -> str:
        """Open a session whose turns sample with `sampling` (engine names), after the `turns` that another session told
        (`turns` of `turns()`); returns its id."""
        asked = {"sampling": dict(sampling or {}), "turns": turns}
        body = orjson.loads(await self._call("POST", "/sessions", asked))
        session_id = str(body["session_id"])
        self._keys[session_id] = str(body["api_key"])
        return session_id

    @contextlib.asynccontextmanager
    async def opened(self, sampling: JsonMapping | None = None) -> AsyncIterator[str]:
        """The id of a session that is deleted with the block."""
        session_id = await self.create(sampling)
        try:
            yield session_id
        finally:
            await self.delete(session_id)

    def api_key(self, session_id: str) -> str:
        """What an agent is given as its API key, of a session that this client opened."""
        return self._keys.get(session_id, "")

    async def collect(self, session_id: str, max_seq_len: int | None = None) -> list[Sample]:
        """The session's samples, as the server validated them. May be repeated."""
        return decode_samples(await self._call("POST", f"/sessions/{session_id}/samples", {"max_seq_len": max_seq_len}))

    async def describe(self, session_id: str) -> JsonObject:
        """Turns, leaves and counts of a session, for people."""
        return dict(orjson.loads(await self._call("GET", f"/sessions/{session_id}")))

    async def outcome(self, session_id: str) -> tuple[Failure | None, JsonObject]:
        """Where and why the session's last call broke, None where it was answered, or was wrong itself; and where its
        time went, as `time_spent` has it."""
        described = await self.describe(session_id)
        told = described.get("failure")
        return None if told is None else Failure(Where(told["where"]), told["why"]), described.get("seconds", {})

    async def turns(self, session_id: str) -> JsonObject:
        """Every turn with its messages and ids: what `atraj.build` takes."""
        return dict(orjson.loads(await self.turns_json(session_id)))

    async def turns_json(self, session_id: str) -> bytes:
        """The same as it came."""
        return await self._call("GET", f"/sessions/{session_id}/turns")

    async def delete(self, session_id: str) -> None:
        await self._call("DELETE", f"/sessions/{session_id}")
        self._keys.pop(session_id, None)

    async def _call(self, method: str, path: str, body: Json = None) -> bytes:
        """Asked again while the server is being restarted. Raises SessionError."""
        deadline = time.monotonic() + min(self._timeout, self._restart_seconds)
        again = False
        while True:
            try:
                return await self._once(method, path, body)
            except SessionError as error:
                if again and method == "DELETE" and error.status == 404:
                    return b""
                if error.status != 503 or time.monotonic() > deadline:
                    raise
            again = True
            await asyncio.sleep(RETRY_PAUSE)

    async def _once(self, method: str, path: str, body: Json) -> bytes:
        if self._http is None:
            raise RuntimeError("SessionClient is used as an async context manager: async with SessionClient(url)")
        data = None if body is None else orjson.dumps(body)
        session_id = path.removeprefix("/sessions").strip("/").partition("/")[0]
        headers = bearer(self._keys.get(session_id) if session_id else self._admin_key) | tracing.headers()
        try:
            async with self._http.request(method, self.url + path, data=data, headers=headers) as response:
                answer = await response.read()
        except TimeoutError as error:
            message = f"{method} {self.url}{path}: no answer within {self._timeout:g} s"
            raise SessionError(504, message) from error
        except aiohttp.ClientError as error:
            raise SessionError(503, f"{method} {self.url}{path}: {error}") from error
        if response.status >= 300:
            raise SessionError(response.status, f"{method} {path}: {response.status} {answer[:500].decode()}")
        return answer
