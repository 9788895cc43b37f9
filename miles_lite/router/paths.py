"""Which path is whose: the router's own control paths, and every other one a worker's.

Invariant: a path of the router's own never reaches a worker, whatever the method.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from aiohttp import web

from miles_lite.process.http_log import refuse_expectations, server_log
from miles_lite.router.app import Handler, Router
from miles_lite.router.replies import failure
from miles_lite.router.spec import BACKLOG

MAX_BODY = 1 << 30
"""Bytes of a request's body."""


def build_app(router: Router) -> web.Application:
    """The aiohttp application of `router`."""
    app = web.Application(client_max_size=MAX_BODY)
    app.cleanup_ctx.append(router.lifetime)
    add, remove = (router.keyed(handler, kind="bad_worker") for handler in (router.add, router.remove))
    set_version = router.keyed(router.set_version, kind="bad_version")
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


async def run_app(router: Router, listener: socket.socket) -> web.AppRunner:
    """Serve on `listener`; returns the runner, to be cleaned up."""
    runner = web.AppRunner(
        build_app(router),
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        logger=server_log(__name__),
        shutdown_timeout=1.0,
    )
    await runner.setup()
    refuse_expectations(runner)
    await web.SockSite(runner, listener, backlog=BACKLOG).start()
    return runner
