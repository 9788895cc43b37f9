"""What the router says to clients: workers' replies passed on, and errors of its own.

Invariant: a reply that cannot be completed is cut, never ended as if it were whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from miles_lite.router.backend import Worker
from miles_lite.router.upstream import Reply

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
PER_REQUEST = HOP_BY_HOP | {"host", "content-length"}
RETRY_AFTER = "1"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what is waited for.

    connect   seconds to reach a worker
    idle      seconds without a byte of its reply
    queue     seconds a request waits for a worker with room
    patience  failures in a row that set a worker aside
    """

    connect: float = 5.0
    idle: float = 600.0
    queue: float = 60.0
    patience: int = 3


class WorkerError(Exception):
    """A worker did not give a whole reply; `status` is what the client is told."""

    def __init__(self, url: str, error: BaseException, limits: Limits) -> None:
        late = isinstance(error, TimeoutError)
        reason = str(error) or type(error).__name__
        said = f"sent nothing for {limits.idle:g} s" if late else f"broke the connection: {reason}"
        super().__init__(f"{url} {said}")
        self.status = 504 if late else 502
        self.kind = "worker_timeout" if late else "worker_connection"


def judge(worker: Worker, status: int, limits: Limits) -> None:
    """A whole reply arrived: 5xx is the worker's failure, anything else is an answer."""
    if status >= 500:
        worker.failed(limits.patience)
    else:
        worker.answered()


def whole_reply(upstream: Reply, body: bytes) -> web.Response:
    """The client's reply to a worker's whole one, with another body if the worker's was merged."""
    headers = end_to_end(upstream.headers, PER_REQUEST)
    return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=body)


def open_reply(request: web.Request, upstream: Reply, gone: frozenset[str] = HOP_BY_HOP) -> web.StreamResponse:
    """The client's reply with the worker's status, reason and headers; chunked exactly when no length is known."""
    headers = end_to_end(upstream.headers, gone)
    reply = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
    if request.method == "HEAD" or upstream.status in (204, 304):
        return reply
    if "Content-Length" not in headers and request.version >= aiohttp.HttpVersion11:
        reply.enable_chunked_encoding()
    return reply


def cut(request: web.Request, started: web.StreamResponse) -> web.StreamResponse:
    """End a reply that had begun and cannot be completed, so that it cannot pass for a whole one."""
    if request.transport is not None:
        request.transport.abort()
    return started


def end_to_end(headers: CIMultiDictProxy[str], gone: frozenset[str] = HOP_BY_HOP) -> CIMultiDict[str]:
    """`headers` without those that concern one connection only, including those that Connection names."""
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection")).split(",")
        gone = gone | {name.strip().lower() for name in named}
    return CIMultiDict([(name, value) for name, value in headers.items() if name.lower() not in gone])


def failure(status: int, message: str, *, kind: str) -> web.Response:
    """An error of the router's own, in the form of OpenAI's."""
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 502, 503, 504) else {}
    body = {"error": {"message": f"router: {message}", "type": kind, "code": status}}
    return web.json_response(body, status=status, headers=headers)
