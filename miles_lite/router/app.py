"""The router's HTTP face: registration in every form in use; everything else goes to a worker.

Invariant: a running app asks the workers that were set aside again, and readmits those that may serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from miles_lite.admin import VARIABLE, shows
from miles_lite.errors import UserError
from miles_lite.router.admission import Admission
from miles_lite.router.gate import Gate
from miles_lite.router.gateway import Gateway
from miles_lite.router.metrics import RouterCollector, render
from miles_lite.router.placement import Placement
from miles_lite.router.proxy import Proxy
from miles_lite.router.registration import fields_of, parse_worker
from miles_lite.router.registry import Registry
from miles_lite.router.replies import Limits, failure
from miles_lite.router.spec import BACKLOG, RouterSpec
from miles_lite.router.upstream import Pool, UnreachableError

log = logging.getLogger(__name__)

MAX_BODY = 1 << 30
PROBE_INTERVAL = 1.0
NO_PAIRS = (
    "prefill/decode is not possible with --router gateway: in that mode the gateway parses bodies, merges neither "
    "batches nor streams, and drops the prefill worker's routed experts. Use --router python"
)

NO_KEY = f"this needs the admin key as Authorization: Bearer; clients of miles_lite take it from {VARIABLE}"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Router:
    """The state of one router and its handlers."""

    def __init__(self, spec: RouterSpec, *, limits: Limits | None = None, interval: float = PROBE_INTERVAL) -> None:
        """Raises UserError when `spec.state_file` is not a router's."""
        limits = limits or spec.limits
        self._interval = interval
        self._admin_key = spec.admin_key
        self.registry = Registry(Path(spec.state_file) if spec.state_file else None)
        self.placement = Placement(spec.policy, most=spec.concurrency)
        self.admission = Admission(self.registry, self.placement, patience=limits.queue)
        self._pool = Pool(connect=limits.connect, idle=limits.idle)
        self._gate = Gate(self.registry, self._pool, seconds=limits.connect)
        self._proxy = Proxy(self.admission, self._pool, limits)
        self._gateway = None
        if spec.gateway_port is not None:
            self._gateway = Gateway(host=spec.bind_host, port=spec.gateway_port, timeout=spec.timeout)
        self._collector = RouterCollector(self.registry, self.admission)

    def keyed(self, handler: Handler) -> Handler:
        """`handler`, for requests that show the admin key where there is one."""

        async def handle(request: web.Request) -> web.StreamResponse:
            if self._admin_key is not None and not shows(request.headers, self._admin_key):
                return failure(401, NO_KEY, kind="unauthorized")
            return await handler(request)

        return handle

    async def lifetime(self, _app: web.Application) -> AsyncIterator[None]:
        """Probing, connections and the gateway live as long as the app. Raises UserError: no gateway."""
        if self._gateway:
            await self._gateway.start()
        probing = asyncio.create_task(self._probe_for_ever())
        yield
        probing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probing
        self._pool.close()
        if self._gateway:
            await self._gateway.stop()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        return await self._proxy.handle(request)

    async def add(self, request: web.Request) -> web.Response:
        """POST /add_worker, POST /workers."""
        try:
            worker = parse_worker(await fields_of(request))
            if self._gateway and worker.worker_type != "regular":
                raise UserError(NO_PAIRS)
            await self._pool.reach(worker.url)
        except UserError as error:
            return failure(400, str(error), kind="bad_worker")
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
        try:
            fields = await fields_of(request)
        except UserError as error:
            return failure(400, str(error), kind="bad_worker")
        name = request.match_info.get("name") or fields.get("url") or fields.get("worker_url") or ""
        worker = self.registry.find(str(name))
        if worker is None:
            return failure(404, f"no worker has the id or url {name!r}", kind="unknown_worker")
        self.registry.drain(worker)
        self.placement.forget(worker)
        self._pool.forget(worker.url)
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
        try:
            fields = await fields_of(request)
            if not isinstance(fields.get("version"), int | str):
                raise UserError("version is required: the weight version that workers must report, a number or a word")
        except UserError as error:
            return failure(400, str(error), kind="bad_version")
        before = fields.get("previous")
        stale = await self._gate.set_version(str(fields["version"]), None if before is None else str(before))
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

    async def _probe_for_ever(self) -> None:
        while True:
            await self._gate.check(one for one in self.registry if one.trial or one.state in ("unreachable", "stale"))
            await self._changed(wait=False)
            await asyncio.sleep(self._interval)


def build_app(router: Router) -> web.Application:
    """The aiohttp application of `router`."""
    app = web.Application(client_max_size=MAX_BODY)
    app.cleanup_ctx.append(router.lifetime)
    add, remove, set_version = map(router.keyed, (router.add, router.remove, router.set_version))
    control: dict[str, dict[str, Handler]] = {
        "/add_worker": {"POST": add},
        "/remove_worker": {"POST": remove},
        "/list_workers": {"GET": router.urls},
        "/workers": {"GET": router.workers, "POST": add, "DELETE": remove},
        "/workers/{name:.+}": {"DELETE": remove},
        "/weight_version": {"GET": router.version, "PUT": set_version},
        "/health": {"GET": router.health},
        "/metrics": {"GET": router.metrics},
    }
    for path, handlers in control.items():
        for spelled in (path, f"{path}/"):
            resource = app.router.add_resource(spelled)
            for method, handler in handlers.items():
                resource.add_route(method, handler)
            resource.add_route("*", _only(handlers))
    app.router.add_route("*", "/{path:.*}", router.forward)
    return app


def _only(handlers: Mapping[str, Handler]) -> Handler:
    """Answers other methods than those of `handlers`, but for HEAD, which is a GET without its body."""
    allowed = ", ".join(handlers)

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD" and "GET" in handlers:
            return await handlers["GET"](request)
        told = failure(405, f"{request.method} {request.path}: only {allowed} here", kind="method_not_allowed")
        told.headers["Allow"] = allowed
        return told

    return handle


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a logged error is the router's. Who sends something else than HTTP is told, with 400; the log is not."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


async def run_app(router: Router, listener: socket.socket) -> web.AppRunner:
    """Serve on `listener`; returns the runner, to be cleaned up."""
    server_log = logging.getLogger(f"{__name__}.server")
    server_log.addFilter(_is_ours)
    runner = web.AppRunner(
        build_app(router),
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        logger=server_log,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner
