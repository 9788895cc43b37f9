"""Server-sent events to one client, with keep-alives while the engine is silent.

Invariant: headers leave with the first event or keep-alive, so that an error before it keeps its status; what was sent
adds up to the answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from aiohttp import web

from miles_lite.process.concurrently import together
from miles_lite.session.dialects import Dialect, Events
from miles_lite.session.dialects.chat import ending
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta, rest
from miles_lite.session.errors import ApiError
from miles_lite.session.shared_request import Call

log = logging.getLogger(__name__)
_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Stream:
    """One request's answer on its way, or its answers."""

    def __init__(
        self, request: web.Request, parsed: ChatRequest, dialect: Dialect, calls: Sequence[Call], *, keep_alive: float
    ) -> None:
        """`calls` are one for each answer that was asked for; `keep_alive` is the longest silence, in seconds."""
        self._request, self._parsed, self._dialect, self._keep_alive = request, parsed, dialect, keep_alive
        self._calls = calls
        self._events = [
            dialect.events(replace(parsed, choice=choice) if choice else parsed, calls[0].stamp)
            for choice in range(len(calls))
        ]
        self._response = web.StreamResponse(headers=_HEADERS)
        self._sending = asyncio.Lock()
        self._last = time.monotonic()

    async def run(self) -> web.StreamResponse:
        """Says everything the calls say, from their beginning. Raises ApiError while nothing has been sent."""
        beating = asyncio.create_task(self._beat())
        try:
            answers = await together(
                *(self._stream_answer(*each) for each in zip(self._calls, self._events, strict=True))
            )
            if len(answers) > 1:
                await self._send(lambda: ending(self._parsed, answers))
            await self._response.write_eof()
            for call in self._calls:
                call.deliver()
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

    async def _stream_answer(self, call: Call, events: Events) -> ChatAnswer:
        """Say one answer, piece by piece."""
        said: list[Delta] = []

        async def tell(delta: Delta) -> None:
            said.append(delta)
            await self._send(lambda: events.delta(delta))

        answer = await call.answer(tell)
        if remaining := rest(answer, said):
            await tell(remaining)
        await self._send(lambda: events.finish(answer))
        return answer

    async def _fail(self, error: ApiError) -> None:
        await self._send(lambda: self._events[0].failure(error))

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
                begun = b"".join(events.start(self._calls[0].prompt_tokens) for events in self._events)
            await self._response.write(begun + make())
            self._last = time.monotonic()
