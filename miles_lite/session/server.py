"""A running session server: tokenizer and template proved, port bound, engines' client open.

Invariant: `start` either returns a URL that answers or leaves nothing behind; `stop` is idempotent.
"""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from miles_lite import config
from miles_lite.atraj import fingerprint
from miles_lite.errors import UserError
from miles_lite.net import bracketed, reachable
from miles_lite.session.app import build_app
from miles_lite.session.engine_calls import EngineCalls
from miles_lite.session.match import matcher_named
from miles_lite.session.service import Service
from miles_lite.tito import Tito


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """What a session server needs to know. `port` None: any free one. `call_seconds` bounds one engine call.

    `keep_alive_seconds` is the longest silence of a stream.
    """

    index: int
    model_path: str
    router_url: str
    bind_host: str
    advertise_host: str
    port: int | None
    options: config.Session
    context_length: int
    call_seconds: float = 600.0
    keep_alive_seconds: float = 15.0
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None


class SessionServer:
    """One server in the running event loop."""

    def __init__(self, spec: SessionSpec) -> None:
        self.spec = spec
        self.service: Service | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> str:
        """Load, verify, bind; returns the URL. Raises UserError."""
        spec = self.spec
        tito, matcher = load_tito(spec), matcher_named(spec.options.session_message_matcher)
        listener = _listen(spec)
        self._stack.callback(listener.close)
        try:
            engines = await self._stack.enter_async_context(
                EngineCalls(
                    spec.router_url,
                    retry_seconds=spec.options.session_retry_seconds,
                    call_seconds=spec.call_seconds,
                )
            )
            self.service = Service(
                tito, engines, options=spec.options, matcher=matcher, context_length=spec.context_length
            )
            app = build_app(self.service, model=fingerprint(spec.model_path), keep_alive=spec.keep_alive_seconds)
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=2.0)
            await runner.setup()
            self._stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener, backlog=4096).start()
        except BaseException:
            await self.stop()
            raise
        return f"http://{bracketed(reachable(spec.advertise_host))}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        await self._stack.aclose()


def load_tito(spec: SessionSpec) -> Tito:
    """The model's text, with the declared roles proved. Raises UserError."""
    options = spec.options
    return Tito.load(
        spec.model_path,
        append_roles=options.tito_allowed_append_roles,
        family=options.tito_model,
        reasoning_parser=spec.reasoning_parser,
        tool_call_parser=spec.tool_call_parser,
    )


def _listen(spec: SessionSpec) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in spec.bind_host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((spec.bind_host, spec.port or 0))
    except OSError as error:
        listener.close()
        raise UserError(
            f"session server {spec.index} cannot listen on {spec.bind_host}:{spec.port or 0} ({error.strerror}): "
            "free the port, or choose another with --session-server-port, or another --bind-host"
        ) from error
    return listener
