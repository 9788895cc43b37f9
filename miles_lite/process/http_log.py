"""What clients of our HTTP servers do wrong: it is answered with a 4xx, and is not in the log.

Invariant: who sends something else than HTTP, a body that cannot be decoded, or expects what nobody knows, gets a 4xx.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from miles_lite.process.aiohttp_compat import HttpProcessingError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def server_log(module: str) -> logging.Logger:
    """What aiohttp's server in `module` logs to."""
    log = logging.getLogger(f"{module}.server")
    log.addFilter(_is_ours)
    return log


def refuse_expectations(runner: web.AppRunner) -> None:
    """Answer other expectations than 100-continue in words that can be written, whatever bytes they are of.

    For a runner that is set up, before it has a site.
    """
    assert runner.server is not None
    runner.server.request_handler = _expecting(runner.server.request_handler)


def _expecting(handler: Handler) -> Handler:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if "Expect" in request.headers and request.headers["Expect"].lower() != "100-continue":
            return web.Response(status=417, text="only 100-continue can be expected")
        return await handler(request)

    return handle


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)
