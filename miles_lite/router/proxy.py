"""Forwards one request to one worker, byte for byte both ways.

Invariant: request and reply pass unparsed and unchanged but for hop-by-hop headers; the reply streams as it comes; the
worker's connection ends when the client's does. A request that reached a worker is never sent a second time: whoever
asks owns retries. One that could not be delivered (connection refused) may go to another worker.
"""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from miles_lite.router.placement import NoWorkerError, Placement
from miles_lite.router.registry import Registry, Worker

ROUTING_KEY = "X-SMG-Routing-Key"
HOP_BY_HOP = frozenset(
    name.lower()
    for name in (
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Expect",
    )
)
NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
RETRY_AFTER = "1"
CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """connect: seconds to reach a worker; idle: seconds without a byte of its reply; patience: failures in a row."""

    connect: float = 5.0
    idle: float = 600.0
    patience: int = 3


class Proxy:
    """Places and forwards requests."""

    def __init__(self, registry: Registry, placement: Placement, client: aiohttp.ClientSession, limits: Limits) -> None:
        self._registry = registry
        self._placement = placement
        self._client = client
        self._limits = limits

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer `request` with a worker's reply, or with 502, 503 or 504 and a reason."""
        if not request.raw_path.startswith("/"):
            return failure(400, f"request target {request.raw_path!r}: must be a path", kind="bad_request")
        body = await request.read()
        refused: list[Worker] = []
        while True:
            candidates = [worker for worker in self._registry if worker not in refused]
            try:
                worker = self._placement.choose(candidates, request.headers.get(ROUTING_KEY))
            except NoWorkerError as error:
                tried = f" (could not connect to {', '.join(one.url for one in refused)})" if refused else ""
                return failure(503, f"{error}{tried}", kind="no_worker")
            try:
                with worker.busy():
                    return await self._forward(request, worker, body)
            except UNREACHED:
                worker.failed(self._limits.patience)
                refused.append(worker)

    async def _forward(self, request: web.Request, worker: Worker, body: bytes) -> web.StreamResponse:
        """One exchange with `worker`. Raises one of UNREACHED when no byte of the request was sent."""
        started: web.StreamResponse | None = None
        try:
            async with self._client.request(
                request.method,
                URL(worker.url + request.raw_path, encoded=True),
                headers=end_to_end(request.headers, drop=("host",)),
                skip_auto_headers=NOT_ADDED,
                data=body or None,
                allow_redirects=False,
            ) as upstream:
                worker.answered()
                started = open_reply(request, upstream)
                await started.prepare(request)
                async for chunk in upstream.content.iter_chunked(CHUNK):
                    await started.write(chunk)
                await started.write_eof()
                return started
        except UNREACHED:
            raise
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._broken(request, worker, error, started)

    def _broken(
        self, request: web.Request, worker: Worker, error: Exception, started: web.StreamResponse | None
    ) -> web.StreamResponse:
        """The worker went silent or away. A reply that had begun is cut, so that it cannot pass for a whole one."""
        if started is not None:
            if request.transport is not None:
                request.transport.abort()
            return started
        if isinstance(error, TimeoutError):
            return failure(504, f"{worker.url} sent nothing for {self._limits.idle:g} s", kind="worker_timeout")
        worker.failed(self._limits.patience)
        reason = str(error) or type(error).__name__
        return failure(502, f"{worker.url} broke the connection: {reason}", kind="worker_connection")


def open_reply(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    """The client's reply with the worker's status, reason and headers; chunked exactly when no length is known."""
    headers = end_to_end(upstream.headers)
    reply = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
    if request.method == "HEAD" or upstream.status in (204, 304):
        return reply
    if "Content-Length" not in headers and request.version >= aiohttp.HttpVersion11:
        reply.enable_chunked_encoding()
    return reply


def end_to_end(headers: CIMultiDictProxy[str], *, drop: tuple[str, ...] = ()) -> CIMultiDict[str]:
    """`headers` without those that concern one connection only, including those that Connection names."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    gone = HOP_BY_HOP | named | set(drop)
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in gone)


def failure(status: int, message: str, *, kind: str) -> web.Response:
    """An error of the router's own, in the form of OpenAI's."""
    headers = {"Retry-After": RETRY_AFTER} if status in (502, 503, 504) else {}
    body = {"error": {"message": f"router: {message}", "type": kind, "code": status}}
    return web.json_response(body, status=status, headers=headers)
