"""Forwards one request to one worker, byte for byte both ways.

Invariant: request and reply pass unparsed and unchanged but for hop-by-hop headers; the reply streams as it comes; the
worker's connection ends when the client's does. A request that reached a worker is never sent a second time: whoever
asks owns retries. One that could not be delivered (no connection) may go to another worker.
"""

from __future__ import annotations

from aiohttp import web

from miles_lite.router.admission import Admission, QueueFullError
from miles_lite.router.backend import Worker
from miles_lite.router.pairs import Pairs, needs_pair
from miles_lite.router.policies import NoWorkerError
from miles_lite.router.replies import (
    PER_REQUEST,
    Limits,
    WorkerError,
    cut,
    end_to_end,
    failure,
    judge,
    open_reply,
    whole_reply,
)
from miles_lite.router.upstream import BROKEN, Pool, Request, UnreachableError

ROUTING_KEY = "X-SMG-Routing-Key"


class Proxy:
    """Admits and forwards requests."""

    def __init__(self, admission: Admission, pool: Pool, limits: Limits) -> None:
        self._admission = admission
        self._pool = pool
        self._limits = limits
        self._pairs = Pairs(pool, limits)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer `request` with a worker's reply, or with 502, 503 or 504 and a reason."""
        if not request.raw_path.startswith("/"):
            return failure(400, f"request target {request.raw_path!r}: must be a path", kind="bad_request")
        body = await request.read()
        onward = Request(request.method, request.raw_path, end_to_end(request.headers, PER_REQUEST).items(), body)
        refused: list[Worker] = []
        tried = ""
        while True:
            try:
                async with self._admission.admit(request.headers.get(ROUTING_KEY), without=refused) as target:
                    if len(target) > 1 and needs_pair(onward):
                        return await self._pairs.forward(request, target, onward)
                    return await self._forward(request, target[-1], onward)
            except UnreachableError as error:
                worker = next(one for one in target if one.url == error.url)
                worker.failed(self._limits.patience)
                refused.append(worker)
                tried = f"could not connect to {', '.join(one.url for one in refused)}: {error}; besides, "
            except WorkerError as error:
                return failure(error.status, str(error), kind=error.kind)
            except NoWorkerError as error:
                return failure(503, f"{tried}{error}", kind="no_worker")
            except QueueFullError as error:
                return failure(503, f"{tried}{error}", kind="queue_timeout")

    async def _forward(self, request: web.Request, worker: Worker, onward: Request) -> web.StreamResponse:
        """One exchange with `worker`. Raises UnreachableError when not a byte was sent, else WorkerError."""
        started: web.StreamResponse | None = None
        try:
            async with self._pool.send(worker.url, onward) as upstream:
                if upstream.whole and request.method != "HEAD":
                    judge(worker, upstream.status, self._limits)
                    return whole_reply(upstream, await upstream.read())
                started = open_reply(request, upstream)
                await started.prepare(request)
                async for chunk in upstream.chunks():
                    await started.write(chunk)
                judge(worker, upstream.status, self._limits)
                await started.write_eof()
                return started
        except (*BROKEN, TimeoutError) as error:
            if started is None or upstream.broken:
                worker.failed(self._limits.patience)
            if started is None:
                raise WorkerError(worker.url, error, self._limits) from error
            return cut(request, started)
