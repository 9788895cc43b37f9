"""The router's HTTP face: registration in every form in use; everything else goes to a worker.

Invariant: a running app probes the workers that were set aside, and readmits those that answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from miles_lite.errors import UserError
from miles_lite.router.placement import Placement
from miles_lite.router.proxy import Limits, Proxy, failure
from miles_lite.router.registry import Registry, Worker, parse_worker

MAX_BODY = 1 << 30
PROBE_INTERVAL = 1.0
KEEP_ALIVE = 2.0
"""Seconds an idle connection to a worker is kept: less than the worker does, so that none closes under a request."""


@dataclass(frozen=True, kw_only=True)
class RouterSpec:
    """Where the router listens, what others are told, seconds it waits for a worker's bytes. port None: a free one."""

    bind_host: str = "127.0.0.1"
    advertise_host: str = "127.0.0.1"
    port: int | None = None
    timeout: float = 600.0


class Router:
    """The state of one router and its handlers."""

    def __init__(self, limits: Limits, *, probe_interval: float = PROBE_INTERVAL) -> None:
        self.registry = Registry()
        self.placement = Placement()
        self._limits = limits
        self._probe_interval = probe_interval

    async def lifetime(self, app: web.Application) -> AsyncIterator[None]:
        """The client and the probe live as long as the app."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect, sock_read=self._limits.idle)
        plain: dict[str, Any] = {"auto_decompress": False, "cookie_jar": aiohttp.DummyCookieJar()}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
        async with aiohttp.ClientSession(**plain, connector=connector, timeout=timeout) as client:
            self._proxy = Proxy(self.registry, self.placement, client, self._limits)
            probing = asyncio.create_task(self._probe_for_ever(client))
            yield
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing

    async def forward(self, request: web.Request) -> web.StreamResponse:
        return await self._proxy.handle(request)

    async def add(self, request: web.Request) -> web.Response:
        """POST /add_worker, POST /workers."""
        try:
            worker = self.registry.add(parse_worker(await _fields(request)))
        except UserError as error:
            return failure(400, str(error), kind="bad_worker")
        counts = {one.url: one.in_flight for one in self.registry}
        return web.json_response(
            {"status": "success", "worker_id": worker.id, "url": worker.url, "worker_urls": counts}
        )

    async def remove(self, request: web.Request) -> web.Response:
        """POST /remove_worker, DELETE /workers/{id or url}, DELETE /workers?url=."""
        try:
            fields = await _fields(request)
        except UserError as error:
            return failure(400, str(error), kind="bad_worker")
        name = request.match_info.get("name") or fields.get("url") or fields.get("worker_url") or ""
        worker = self.registry.find(str(name))
        if worker is None:
            return failure(404, f"no worker has the id or url {name!r}", kind="unknown_worker")
        self.registry.remove(worker)
        self.placement.forget(worker)
        return web.json_response({"status": "success", "worker_id": worker.id, "url": worker.url})

    async def urls(self, _request: web.Request) -> web.Response:
        """GET /list_workers."""
        return web.json_response({"urls": [worker.url for worker in self.registry]})

    async def workers(self, _request: web.Request) -> web.Response:
        """GET /workers."""
        listed = [worker.as_dict() for worker in self.registry]
        return web.json_response({"workers": listed, "total": len(listed)})

    async def health(self, _request: web.Request) -> web.Response:
        """GET /health: of the router itself."""
        usable = sum(not worker.set_aside for worker in self.registry)
        return web.json_response({"status": "ok", "workers": len(self.registry), "usable": usable})

    async def _probe_for_ever(self, client: aiohttp.ClientSession) -> None:
        while True:
            await asyncio.sleep(self._probe_interval)
            await asyncio.gather(*(self._probe(client, worker) for worker in self.registry if worker.set_aside))

    async def _probe(self, client: aiohttp.ClientSession, worker: Worker) -> None:
        timeout = aiohttp.ClientTimeout(total=self._limits.connect)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with client.get(f"{worker.url}/health", timeout=timeout) as reply:
                if reply.status == 200:
                    worker.answered()


def build_app(router: Router) -> web.Application:
    """The aiohttp application of `router`."""
    app = web.Application(client_max_size=MAX_BODY)
    app.cleanup_ctx.append(router.lifetime)
    app.router.add_post("/add_worker", router.add)
    app.router.add_post("/workers", router.add)
    app.router.add_get("/workers", router.workers)
    app.router.add_delete("/workers", router.remove)
    app.router.add_delete("/workers/{name:.+}", router.remove)
    app.router.add_get("/list_workers", router.urls)
    app.router.add_post("/remove_worker", router.remove)
    app.router.add_get("/health", router.health)
    app.router.add_route("*", "/{path:.*}", router.forward)
    return app


async def start_app(router: Router, spec: RouterSpec) -> tuple[web.AppRunner, str]:
    """Listen; returns the runner, to be cleaned up, and the URL others are told. Raises UserError: port in use."""
    runner = web.AppRunner(
        build_app(router), handler_cancellation=True, auto_decompress=False, access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, spec.bind_host, spec.port or 0).start()
    except OSError as error:
        await runner.cleanup()
        raise UserError(
            f"the router cannot listen on {spec.bind_host}:{spec.port}: {error.strerror or error}.\n"
            "  End the process that uses the port, choose another with --sglang-router-port, or leave it out."
        ) from error
    host = f"[{spec.advertise_host}]" if ":" in spec.advertise_host else spec.advertise_host
    return runner, f"http://{host}:{runner.addresses[0][1]}"


def serve(spec: RouterSpec) -> None:
    """Run a router until SIGINT or SIGTERM; prints its URL. Raises UserError when the port is in use."""
    asyncio.run(_serve(spec))


async def _serve(spec: RouterSpec) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner, url = await start_app(Router(Limits(idle=spec.timeout)), spec)
    print(f"router: {url}", flush=True)
    await stopped.wait()
    await runner.cleanup()


async def _fields(request: web.Request) -> dict[str, Any]:
    """A control request's fields: the query's, else the JSON body's. Raises UserError for a body that is no object."""
    if request.query or not await request.read():
        return dict(request.query)
    try:
        fields = json.loads(await request.read())
    except ValueError as error:
        raise UserError(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError("the body must be a JSON object")
    return fields
