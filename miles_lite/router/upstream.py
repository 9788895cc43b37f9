"""HTTP to workers: one request, one reply, over connections that are kept.

aiohttp's client does more than a proxy needs (redirects, cookies, URL building, content coding), and that is most of
what it costs; here its connection and parser are used without it.
Invariant: a connection goes back to the pool only when its reply was read to the end and both sides want to keep it;
every other way out closes it, which is what cancels the request at the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Iterable, Set
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDictProxy

from miles_lite.process.aiohttp_compat import HttpProcessingError, RawResponseMessage, ResponseHandler

KEEP_ALIVE = 2.0
"""Seconds an idle connection to a worker is kept: less than the worker does, so that none closes under a request."""
MOST_IDLE = 512

BROKEN = (aiohttp.ClientError, HttpProcessingError, OSError)
"""What reading a reply raises when the worker closed, or sent no HTTP."""


class UnreachableError(Exception):
    """No connection to `url` could be made; no byte of the request was sent."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(reason)
        self.url = url


@dataclass(frozen=True)
class Request:
    """What is sent: a target in origin form (RFC 9112, section 3.2.1), end-to-end headers, a whole body.

    The path of the worker's URL, if it has one, leads the target.
    """

    method: str
    target: str
    headers: Iterable[tuple[str, str]] = ()
    body: bytes = b""

    def encode(self, url: str) -> bytes:
        """The bytes of this request for the worker at `url`."""
        origin = _origin(url)
        lines = [f"{self.method} {origin.path}{self.target} HTTP/1.1\r\nHost: {origin.header}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        if self.body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(self.body)}\r\n")
        return "".join(lines).encode("utf-8", "surrogateescape") + b"\r\n" + self.body


class Reply:
    """A worker's reply: status line and headers are here, the body comes with `read` or `chunks`."""

    def __init__(self, message: RawResponseMessage, payload: aiohttp.StreamReader) -> None:
        self.status: int = message.code
        self.reason: str = message.reason
        self.headers: CIMultiDictProxy[str] = message.headers
        self._payload = payload

    @property
    def whole(self) -> bool:
        """True when the end of the body has arrived: reading it does not wait."""
        return self._payload.is_eof()

    @property
    def broken(self) -> bool:
        """True when the worker broke off in the middle of the body, or fell silent."""
        return self._payload.exception() is not None

    async def read(self) -> bytes:
        """All of the body that is left. Raises one of BROKEN or TimeoutError when the rest does not come."""
        return await self._payload.read()

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. The worker is not read from while the caller does not ask for more."""
        return self._payload.iter_any()


@dataclass(frozen=True)
class _Origin:
    host: str
    port: int
    tls: bool
    header: str
    path: str


class Pool:
    """Connections to workers, kept by URL."""

    def __init__(self, *, connect: float, idle: float) -> None:
        """connect: seconds to make a connection; idle: seconds without a byte of the reply."""
        self._connect_seconds = connect
        self._idle_seconds = idle
        self._kept: dict[str, list[tuple[ResponseHandler, float]]] = {}

    @contextlib.asynccontextmanager
    async def send(self, url: str, request: Request, *, idle: float | None = None) -> AsyncIterator[Reply]:
        """The worker's reply to `request`, with the status and headers read.

        Raises UnreachableError before anything was sent; then TimeoutError after `idle` seconds without a byte, or one
        of BROKEN. A request is sent once.
        """
        connection = self._take(url)
        if connection is None:
            connection = await self.connect(url)
        try:
            connection.set_response_params(
                skip_payload=request.method == "HEAD",
                read_until_eof=True,
                auto_decompress=False,
                read_timeout=idle or self._idle_seconds,
            )
            if connection.transport is None:
                raise aiohttp.ServerDisconnectedError("closed as soon as it was opened")
            connection.transport.write(request.encode(url))
            connection.start_timeout()
            message, payload = await connection.read()
            while message.code < 200:
                message, payload = await connection.read()
            yield Reply(message, payload)
        except BaseException:
            connection.abort()
            raise
        self._keep(url, connection)

    async def connect(self, url: str) -> ResponseHandler:
        """A new connection. Raises UnreachableError."""
        loop, origin = asyncio.get_running_loop(), _origin(url)
        making = loop.create_connection(
            lambda: ResponseHandler(loop), origin.host, origin.port, ssl=True if origin.tls else None
        )
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await making
        except TimeoutError:
            raise UnreachableError(url, f"no connection within {self._connect_seconds:g} s") from None
        except OSError as error:
            raise UnreachableError(url, error.strerror or str(error)) from error
        return connection

    async def reach(self, url: str) -> None:
        """Return when a connection to `url` could be made; it is kept. Raises UnreachableError."""
        self._keep(url, await self.connect(url))

    def forget_all_but(self, urls: Set[str]) -> None:
        """Close the kept connections to any other URL."""
        for url in self._kept.keys() - urls:
            for connection, _ in self._kept.pop(url):
                connection.close()

    def _take(self, url: str) -> ResponseHandler | None:
        """The connection that was used last; those that were idle for too long are closed."""
        kept, oldest = self._kept.get(url), time.monotonic() - KEEP_ALIVE
        while kept:
            connection, since = kept.pop()
            if since > oldest and connection.is_connected() and not connection.should_close:
                return connection
            connection.close()
        return None

    def _keep(self, url: str, connection: ResponseHandler) -> None:
        kept = self._kept.setdefault(url, [])
        if connection.should_close or not connection.is_connected() or len(kept) >= MOST_IDLE:
            connection.close()
        else:
            kept.append((connection, time.monotonic()))


@functools.lru_cache(maxsize=4096)
def _origin(url: str) -> _Origin:
    """Where a worker's URL points."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    return _Origin(parts.hostname, port, tls, parts.netloc.rpartition("@")[2], parts.path)
