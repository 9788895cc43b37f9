"""A small worker to put behind the router, and the router in front of it, both over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from miles_lite.router.app import Router
from miles_lite.router.backend import Worker
from miles_lite.router.paths import run_app
from miles_lite.router.replies import Limits
from miles_lite.router.spec import RouterSpec, listen, url_of


@dataclass
class Upstream:
    """Records what arrives; its paths misbehave in the ways real workers do.

    mute     does not say its version
    hangs    never answers; drops: breaks the connection instead
    paced    answers after `release`
    dies     breaks off in the middle of its events, after `release`
    """

    url: str = ""
    version: str | None = None
    model: Any = None
    mute: bool = False
    status: int = 418
    answer: dict[str, Any] | None = None
    events: list[dict[str, Any] | str] = field(default_factory=list)
    hangs: bool = False
    drops: bool = False
    paced: bool = False
    dies: bool = False
    sent: int = 0
    connections: set[tuple[str, int]] = field(default_factory=set)
    seen: list[tuple[str, CIMultiDictProxy[str], bytes]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/stream", self.stream)
        app.router.add_route("*", "/hang", self.hang)
        app.router.add_route("*", "/cut", self.cut)
        app.router.add_route("*", "/drop", self.drop)
        app.router.add_get("/flood", self.flood)
        app.router.add_get("/close", self.close)
        app.router.add_get("/model_info", self.model_info)
        app.router.add_route("*", "/{path:.*}", self.echo)
        return app

    async def model_info(self, request: web.Request) -> web.Response:
        if self.mute:
            return await self.hang(request)
        told = {"weight_version": self.version} if self.model is None else self.model
        return web.json_response(told, status=200 if self.status < 500 else self.status)

    async def echo(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.raw_path, request.headers, body))
        self.connections.add(request.get_extra_info("peername"))
        if self.paced:
            await self.release.wait()
        if self.hangs:
            return await self.hang(request)
        if self.drops:
            return await self.drop(request)
        if self.events:
            return await self.stream_events(request)
        if self.answer is not None:
            return web.json_response(self.answer, status=self.status)
        headers = {"X-Odd-Reply": "kept", "Connection": "X-Per-Hop", "X-Per-Hop": "1", "Content-Encoding": "gzip"}
        return web.Response(status=self.status, reason="As It Is", headers=headers, body=gzip.compress(body))

    async def close(self, request: web.Request) -> web.Response:
        self.connections.add(request.get_extra_info("peername"))
        return web.Response(headers={"Connection": "close"})

    async def flood(self, request: web.Request) -> web.StreamResponse:
        """Writes for as long as somebody reads."""
        reply = web.StreamResponse()
        await reply.prepare(request)
        try:
            while True:
                await reply.write(bytes(1 << 16))
                self.sent += 1 << 16
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise

    async def stream(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        await reply.write(b"data: 1\n\n")
        await self.release.wait()
        await reply.write(b"data: 2\n\n")
        return reply

    async def stream_events(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for number, event in enumerate(self.events):
            if number:
                await self.released(request)
            data = event if isinstance(event, str) else json.dumps(event)
            await reply.write(f"data: {data}\n\n".encode())
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def released(self, request: web.Request) -> None:
        """Wait for `release`; a worker that then dies does so in the middle of its reply."""
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.dies:
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError

    async def hang(self, _request: web.Request) -> web.Response:
        self.arrived.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return web.Response()

    async def cut(self, request: web.Request) -> web.StreamResponse:
        """Dies in the middle of a reply."""
        reply = web.StreamResponse(headers={"Content-Length": "100"})
        await reply.prepare(request)
        await reply.write(b"only this")
        assert request.transport is not None
        request.transport.close()
        return reply

    async def drop(self, request: web.Request) -> web.Response:
        """Dies before a reply."""
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


@asynccontextmanager
async def serving(upstream: Upstream, *, port: int = 0) -> AsyncIterator[Upstream]:
    """`upstream` listening; its url is set."""
    app = upstream.app()
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def routing(
    *upstreams: str, limits: Limits | None = None, interval: float = 0.05, spec: RouterSpec | None = None
) -> AsyncIterator[tuple[Router, aiohttp.ClientSession]]:
    """A router with regular workers at these URLs, and a client whose base URL it is."""
    spec = spec or RouterSpec()
    router = Router(spec, limits=limits or Limits(connect=2.0, idle=20.0), interval=interval)
    listener = listen(spec)
    runner = await run_app(router, listener)
    try:
        async with aiohttp.ClientSession(url_of(spec, listener), auto_decompress=False) as client:
            for upstream in upstreams:
                router.registry.add(Worker(upstream))
            yield router, client
    finally:
        await runner.cleanup()
        listener.close()


@contextmanager
def reachable_urls(count: int) -> Iterator[list[str]]:
    """URLs of that many sockets that listen, and never answer."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        yield [f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def raw_url(client: aiohttp.ClientSession, path: str) -> URL:
    """The router's URL with `path` exactly as it is written."""
    return URL(str(client._base_url).rstrip("/") + path, encoded=True)


async def eventually(condition, what: str) -> None:
    """Wait until `condition()` holds, 30 s at most."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited 30 s for {what}")
