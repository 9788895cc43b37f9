"""Forwards one request to a prefill and a decode worker, and gives the client one reply.

Both get the client's body with where to meet (`bootstrap_host`, `bootstrap_port`, `bootstrap_room`) added behind its
other keys; not a byte of the rest changes. One room number is enough for a batch: SGLang counts up from it.
Invariant: when one half fails, refuses or is given up, the other is cancelled.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar
from urllib.parse import urlsplit

import orjson
from aiohttp import web

from miles_lite.process.addresses import bracketed
from miles_lite.process.concurrently import together
from miles_lite.process.json_types import JsonObject
from miles_lite.process.server_sent_events import Events, payload
from miles_lite.router.backend import Worker
from miles_lite.router.merge import merged, merged_event, prompts_of
from miles_lite.router.policies import Target
from miles_lite.router.replies import PER_REQUEST, Limits, WorkerError, cut, failure, judge, open_reply, whole_reply
from miles_lite.router.upstream import BROKEN, Pool, Reply, Request

GENERATING = ("/generate", "/v1/chat/completions", "/v1/completions")
MOST_ROOMS = 1 << 62

T = TypeVar("T")


class _RefusedError(Exception):
    """One half answered with an error: that is the answer."""

    def __init__(self, response: web.Response) -> None:
        self.response = response


def needs_pair(request: Request) -> bool:
    """True for what generates; anything else a decode worker answers alone."""
    return request.method in ("POST", "PUT") and request.target.partition("?")[0] in GENERATING


class Pairs:
    """The prefill/decode side of a proxy."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self._pool = pool
        self._limits = limits

    async def forward(self, request: web.Request, target: Target, onward: Request) -> web.StreamResponse:
        """The reply of both, merged. Raises UnreachableError and WorkerError, as for one worker."""
        prefill, decode = target
        try:
            both = replace(onward, body=with_room(onward.body, prefill))
        except ValueError as error:
            return failure(400, str(error), kind="bad_request")
        async with contextlib.AsyncExitStack() as stack:
            try:
                told, answer = await together(*(self._open(stack, worker, both) for worker in target))
            except _RefusedError as refused:
                return refused.response
            try:
                if "event-stream" in answer.headers.get("Content-Type", ""):
                    return await self._stream(request, target, told, answer)
                said, body = await together(self._read(prefill, told), self._read(decode, answer))
                return whole_reply(answer, merged(body, prompts_of([orjson.loads(said)])))
            except orjson.JSONDecodeError as error:
                return failure(502, f"{prefill.url} or {decode.url} sent no JSON: {error}", kind="bad_reply")

    async def _open(self, stack: contextlib.AsyncExitStack, worker: Worker, sent: Request) -> Reply:
        """A worker's 200. Raises _RefusedError for any other reply."""
        reply = await self._guarded(worker, stack.enter_async_context(self._pool.send(worker.url, sent)))
        if reply.status != 200:
            raise _RefusedError(whole_reply(reply, await self._read(worker, reply)))
        return reply

    async def _read(self, worker: Worker, reply: Reply) -> bytes:
        body = await self._guarded(worker, reply.read())
        judge(worker, reply.status, self._limits)
        return body

    async def _guarded(self, worker: Worker, doing: Awaitable[T]) -> T:
        """The result of an exchange with `worker`. Raises WorkerError when it breaks off."""
        try:
            return await doing
        except (*BROKEN, TimeoutError) as error:
            worker.failed(self._limits.patience)
            raise WorkerError(worker.url, error, self._limits) from error

    async def _stream(self, request: web.Request, target: Target, told: Reply, answer: Reply) -> web.StreamResponse:
        """Decode's events as they come, completed with what prefill's, which ended when the first could begin, said."""
        prefill, decode = target
        events, said = Events(), await self._read(prefill, told)
        objects = [orjson.loads(data) for event in Events().feed(said) if (data := payload(event)) is not None]
        if any("error" in one for one in objects):
            return whole_reply(told, said)
        prompts = prompts_of(objects)
        started = open_reply(request, answer, gone=PER_REQUEST)
        try:
            await started.prepare(request)
            async for chunk in answer.chunks():
                if whole := events.feed(chunk):
                    await started.write(b"".join(merged_event(event, prompts) for event in whole))
            judge(decode, answer.status, self._limits)
            await started.write(events.rest)
            await started.write_eof()
        except (*BROKEN, TimeoutError, orjson.JSONDecodeError):
            if answer.broken:
                decode.failed(self._limits.patience)
            return cut(request, started)
        return started


def with_room(body: bytes, prefill: Worker) -> bytes:
    """`body` with where the two halves meet. Raises ValueError for what cannot be generated in two halves."""
    inner = body.strip()
    if not (inner.startswith(b"{") and inner.endswith(b"}")):
        raise ValueError("the body must be a JSON object")
    if b'"n"' in inner and _choices(orjson.loads(inner)) > 1:
        raise ValueError(
            "n > 1 is not possible with prefill/decode workers: SGLang would use one bootstrap room for all of them. "
            "Send the request n times"
        )
    meeting = {
        "bootstrap_host": bracketed(urlsplit(prefill.url).hostname or ""),
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": random.randrange(MOST_ROOMS),
    }
    comma = b"" if inner == b"{}" else b","
    return inner[:-1] + comma + orjson.dumps(meeting)[1:]


def _choices(body: JsonObject) -> int:
    sampling = body.get("sampling_params") or {}
    each = [body, *(sampling if isinstance(sampling, list) else [sampling])]
    counts = [one.get("n") for one in each if isinstance(one, dict)]
    return max([1, *(count for count in counts if isinstance(count, int))])
