"""A small worker to put behind the router, and the router in front of it, both over real sockets."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from yarl import URL

from miles_lite.router.app import Router, RouterSpec, start_app
from miles_lite.router.proxy import Limits


@dataclass
class Upstream:
    """Records what arrives; its paths misbehave in the ways real workers do."""

    url: str = ""
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/stream", self.stream)
        app.router.add_route("*", "/hang", self.hang)
        app.router.add_route("*", "/cut", self.cut)
        app.router.add_route("*", "/drop", self.drop)
        app.router.add_get("/health", self.health)
        app.router.add_route("*", "/{path:.*}", self.echo)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.seen.append((request.raw_path, dict(request.headers), body))
        headers = {"X-Odd-Reply": "kept", "Connection": "X-Per-Hop", "X-Per-Hop": "1", "Content-Encoding": "gzip"}
        return web.Response(status=418, reason="As It Is", headers=headers, body=gzip.compress(body))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        await reply.write(b"data: 1\n\n")
        await self.release.wait()
        await reply.write(b"data: 2\n\n")
        return reply

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
    runner = web.AppRunner(upstream.app(), handler_cancellation=True, auto_decompress=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def routing(
    *upstreams: str, limits: Limits | None = None, probe_interval: float = 0.05
) -> AsyncIterator[tuple[Router, aiohttp.ClientSession]]:
    """A router with regular workers at these URLs, and a client whose base URL it is."""
    router = Router(limits or Limits(connect=2.0, idle=20.0), probe_interval=probe_interval)
    runner, url = await start_app(router, RouterSpec())
    try:
        async with aiohttp.ClientSession(url, auto_decompress=False) as client:
            for upstream in upstreams:
                async with client.post("/add_worker", params={"url": upstream}) as reply:
                    assert reply.status == 200
            yield router, client
    finally:
        await runner.cleanup()


def raw_url(client: aiohttp.ClientSession, path: str) -> URL:
    """The router's URL with `path` exactly as it is written."""
    return URL(str(client._base_url).rstrip("/") + path, encoded=True)


async def eventually(condition, what: str) -> None:
    """Wait until `condition()` holds, 10 s at most."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited 10 s for {what}")
