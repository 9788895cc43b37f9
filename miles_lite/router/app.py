"""The state of a router, and what it answers by itself: registrations, weight versions, health, metrics.

Invariant: a running app asks the workers that were set aside again, and readmits those that may serve; it keeps no
connection to one that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from miles_lite.config.choices import WorkerType
from miles_lite.errors import UserError
from miles_lite.process.admin_key import authorizes, needed
from miles_lite.router.admission import Admission
from miles_lite.router.gate import Gate
from miles_lite.router.gateway import Gateway
from miles_lite.router.policies import Placement
from miles_lite.router.prometheus import RouterCollector, render
from miles_lite.router.proxy import Proxy
from miles_lite.router.registration import fields_of, parse_versions, parse_worker
from miles_lite.router.registry import Registry
from miles_lite.router.replies import Limits, failure
from miles_lite.router.spec import RouterSpec
from miles_lite.router.upstream import Pool, UnreachableError

log = logging.getLogger(__name__)

PROBE_INTERVAL = 1.0
NO_PAIRS = (
    "prefill/decode is not possible with --router gateway: in that mode the gateway parses bodies, merges neither "
    "batches nor streams, and drops the prefill worker's routed experts. Use --router python"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Router:
    """The state of one router and its handlers."""

    def __init__(self, spec: RouterSpec, *, limits: Limits | None = None, interval: float = PROBE_INTERVAL) -> None:
        """Raises UserError when `spec.state_file` is not a router's, or cannot be one."""
        limits = limits or spec.limits
        self._interval = interval
        self._admin_key = spec.admin_key
        self.registry = Registry(Path(spec.state_file) if spec.state_file else None)
        self.placement = Placement(spec.routing.router_policy, most=spec.routing.sglang_server_concurrency)
        self.admission = Admission(self.registry, self.placement, patience=limits.queue)
        self._pool = Pool(connect=limits.connect, idle=limits.idle)
        self._gate = Gate(self.registry, self._pool, seconds=limits.connect)
        self._proxy = Proxy(self.admission, self._pool, limits)
        self._gateway = None
        if spec.gateway_port is not None:
            self._gateway = Gateway(host=spec.hosts.bind_host, port=spec.gateway_port, timeout=limits.idle)
        self._collector = RouterCollector(self.registry, self.admission)

    def keyed(self, handler: Handler, *, kind: str) -> Handler:
        """`handler`, for requests that show the admin key where there is one; what it refuses is of this kind."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if self._admin_key is not None and not authorizes(request.headers, self._admin_key):
                return failure(401, needed(f"{request.method} {request.path}"), kind="unauthorized")
            try:
                return await handler(request)
            except UserError as error:
                return failure(400, str(error), kind=kind)

        return handle

    async def lifetime(self, _app: web.Application) -> AsyncIterator[None]:
        """Probing, connections and the gateway live as long as the app. Raises UserError: no gateway."""
        if self._gateway:
            await self._gateway.start()
        probing = asyncio.create_task(self._look_after_workers())
        yield
        probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probing
        self._pool.forget_all_but(set())
        if self._gateway:
            await self._gateway.stop()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Any other path, by any method."""
        return await self._proxy.handle(request)

    async def add(self, request: web.Request) -> web.Response:
        """POST /add_worker, POST /workers."""
        worker = parse_worker(await fields_of(request))
        if self._gateway and worker.worker_type != WorkerType.REGULAR:
            raise UserError(NO_PAIRS)
        try:
            await self._pool.reach(worker.url)
        except UnreachableError as error:
            return failure(400, f"url {error.url!r}: cannot be reached: {error}", kind="unreachable_worker")
        worker = self.registry.add(worker)
        if self.registry.accepted:
            await self._gate.check([worker])
        if refused := await self._changed():
            return refused
        counts = {one.url: one.in_flight for one in self.registry}
        return web.json_response(
            {"status": "success", "worker_id": worker.id, "url": worker.url, "worker_urls": counts}
        )

    async def remove(self, request: web.Request) -> web.Response:
        """POST /remove_worker, DELETE /workers/{id or url}, DELETE /workers?url=."""
        fields = await fields_of(request)
        name = request.match_info.get("name") or fields.get("url") or fields.get("worker_url") or ""
        worker = self.registry.find(str(name))
        if worker is None:
            return failure(404, f"no worker has the id or url {name!r}", kind="unknown_worker")
        self.registry.drain(worker)
        self.placement.forget(worker)
        if refused := await self._changed():
            return refused
        return web.json_response(
            {"status": "success", "worker_id": worker.id, "url": worker.url, "in_flight": worker.in_flight}
        )

    async def urls(self, _request: web.Request) -> web.Response:
        """GET /list_workers."""
        return web.json_response({"urls": [worker.url for worker in self.registry]})

    async def workers(self, _request: web.Request) -> web.Response:
        """GET /workers."""
        listed = [worker.as_dict() for worker in self.registry]
        versions = list(self.registry.accepted)
        return web.json_response({"workers": listed, "total": len(listed), "weight_versions": versions})

    async def set_version(self, request: web.Request) -> web.Response:
        """PUT /weight_version: `version`, and `previous` while an update runs."""
        version, before = parse_versions(await fields_of(request))
        stale = await self._gate.set_version(version, before)
        if refused := await self._changed():
            return refused
        return web.json_response({"weight_versions": list(self.registry.accepted), "stale": stale})

    async def version(self, _request: web.Request) -> web.Response:
        """GET /weight_version."""
        return web.json_response({"weight_versions": list(self.registry.accepted)})

    async def health(self, _request: web.Request) -> web.Response:
        """GET /health: of the router itself."""
        usable = sum(worker.state == "ready" for worker in self.registry)
        return web.json_response({"status": "ok", "workers": len(self.registry), "usable": usable})

    async def metrics(self, _request: web.Request) -> web.Response:
        """GET /metrics: Prometheus's text format."""
        return web.Response(body=render(self._collector), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _changed(self, *, wait: bool = True) -> web.Response | None:
        """Who may serve has changed: tell those who wait, and the gateway; an error when that does not follow."""
        self.admission.wake()
        if self._gateway:
            try:
                ready = [worker.url for worker in self.registry if worker.state == "ready"]
                await self._gateway.follow(ready, wait=wait)
            except UserError as error:
                log.error("%s", error)
                return failure(503, str(error), kind="gateway")
        return None

    async def _look_after_workers(self) -> None:
        """Every so often: readmit who may serve again, place who waits, let go of who is gone."""
        while True:
            await self._gate.check(one for one in self.registry if one.trial or one.state in ("unreachable", "stale"))
            await self._changed(wait=False)
            self._pool.forget_all_but({one.url for one in self.registry})
            await asyncio.sleep(self._interval)
