"""Server-sent events to one client, with keep-alives while the engine is silent.

Invariant: headers leave with the first event or keep-alive, so that an error before it keeps its status; what was sent
adds up to the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

from miles_lite.session.calls import Call
from miles_lite.session.dialects import Dialect
from miles_lite.session.errors import ApiError
from miles_lite.session.exchange import ChatRequest, Delta, rest

log = logging.getLogger(__name__)
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Stream:
    """One answer on its way."""

    def __init__(
        self, request: web.Request, parsed: ChatRequest, dialect: Dialect, call: Call, *, keep_alive: float
    ) -> None:
        """`keep_alive` is the longest silence, in seconds."""
        self._request, self._dialect, self._call, self._keep_alive = request, dialect, call, keep_alive
        self._events = dialect.events(parsed, call.stamp)
        self._response = web.StreamResponse(headers=_HEADERS)
        self._sending = asyncio.Lock()
        self._last = time.monotonic()
        self._said: list[Delta] = []

    async def run(self) -> web.StreamResponse:
        """Says everything the call says, from its beginning. Raises ApiError while nothing has been sent."""
        beating = asyncio.create_task(self._beat())
        try:
            answer = await self._call.hear(self._delta)
            if remaining := rest(answer, self._said):
                await self._delta(remaining)
            await self._send(lambda: self._events.finish(answer))
            await self._response.write_eof()
            self._call.deliver()
        except ApiError as error:
            if not self._response.prepared:
                raise
            await self._fail(error)
        except ConnectionResetError:
            raise
        except Exception:
            if not self._response.prepared:
                raise
            log.exception("%s failed in the middle of its stream", self._request.path)
            await self._fail(ApiError(500, "internal error: see the session server's log"))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
        return self._response

    async def _delta(self, delta: Delta) -> None:
        self._said.append(delta)
        await self._send(lambda: self._events.delta(delta))

    async def _fail(self, error: ApiError) -> None:
        await self._send(lambda: self._events.failure(error))

    async def _beat(self) -> None:
        while True:
            silent = time.monotonic() - self._last
            if silent >= self._keep_alive:
                await self._send(lambda: self._dialect.keep_alive)
            else:
                await asyncio.sleep(self._keep_alive - silent)

    async def _send(self, make: Callable[[], bytes]) -> None:
        """Events are made when it is their turn, because they are numbered."""
        async with self._sending:
            begun = b""
            if not self._response.prepared:
                await self._response.prepare(self._request)
                begun = self._events.start(self._call.prompt_tokens)
            await self._response.write(begun + make())
            self._last = time.monotonic()
