"""A running session server: tokenizer and template proved, port bound, engines' client open.

Invariant: `start` either returns a URL that answers or leaves nothing behind; `stop` is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from aiohttp import web

from miles_lite.config.engines import Engines, Routing
from miles_lite.config.places import Hosts
from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.errors import UserError, writing
from miles_lite.model_folder import fingerprint
from miles_lite.process import tracing
from miles_lite.process.addresses import bracketed, loopback, network_file_system, reachable
from miles_lite.process.http_log import refuse_expectations, server_log
from miles_lite.process.scratch import lasting
from miles_lite.session.engine.engine_client import EngineCalls
from miles_lite.session.engine.experts import expert_layers
from miles_lite.session.history.match import matcher_named
from miles_lite.session.http.app import build_app
from miles_lite.session.http.keys import Keys
from miles_lite.session.journal.store import Journal
from miles_lite.session.model_text import model_text
from miles_lite.session.service import Service
from miles_lite.tito import Tito

BACKLOG = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """What a session server needs to know.

    `port` None: any free one. `admin_key` is what opening a session takes; None: nothing. `routing` bounds one engine
    call. `engines`: how they were started; where they return routed experts, samples carry them. `secret` makes the
    sessions' keys where there is no journal to keep one. `otlp_endpoint`: who gets its spans.

    `keep_alive_seconds` is the longest silence of a stream. Without `run_dir` and --session-journal-dir there is no
    journal.
    """

    index: int
    model_path: str
    router_url: str
    context_length: int
    options: SessionOptions = field(default_factory=SessionOptions)
    hosts: Hosts = field(default_factory=Hosts)
    routing: Routing = field(default_factory=Routing)
    engines: Engines = field(default_factory=Engines)
    port: int | None = None
    keep_alive_seconds: float = 15.0
    run_dir: str | None = None
    secret: str = field(default="", repr=False)
    admin_key: str | None = field(default=None, repr=False)
    otlp_endpoint: str | None = None


class SessionServer:
    """One server in the running event loop, on `listener` or on a socket of its own."""

    def __init__(self, spec: SessionSpec, listener: socket.socket | None = None) -> None:
        self.spec = spec
        self._listener = listener
        self.service: Service | None = None
        self._stack = AsyncExitStack()

    async def start(self) -> str:
        """Load, verify, bind; returns the URL. Raises UserError."""
        spec = self.spec
        tito, matcher = load_tito(spec), matcher_named(spec.options.session_message_matcher)
        listener = self._listener or listen(spec)
        self._stack.callback(listener.close)
        try:
            tracing.start(spec.otlp_endpoint, f"session-{spec.index}")
            self._stack.push_async_callback(asyncio.to_thread, tracing.stop)
            journal = self._journal()
            engines = await self._stack.enter_async_context(
                EngineCalls(
                    spec.router_url,
                    retry_seconds=spec.options.session_retry_seconds,
                    call_seconds=spec.routing.router_timeout,
                    expert_layers=expert_layers(spec.model_path) if spec.engines.returns_experts else 0,
                )
            )
            self.service = Service(
                tito,
                engines,
                options=spec.options,
                matcher=matcher,
                context_length=spec.context_length,
                journal=journal,
            )
            self._stack.push_async_callback(self.service.close)
            await self.service.open()
            app = build_app(
                self.service,
                model=fingerprint(spec.model_path, template=spec.options.chat_template_path),
                keys=await self._keys(journal),
                keep_alive=spec.keep_alive_seconds,
                options=spec.options,
            )
            runner = web.AppRunner(
                app, access_log=None, logger=server_log(__name__), handler_cancellation=True, shutdown_timeout=2.0
            )
            await runner.setup()
            refuse_expectations(runner)
            self._stack.push_async_callback(runner.cleanup)
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
        except BaseException:
            await self.stop()
            raise
        return url_of(spec, listener)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def _keys(self, journal: Journal | None) -> Keys:
        secret = self.spec.secret or secrets.token_hex(32)
        if journal is not None:
            with writing("the session journal", journal.path):
                secret = await journal.keep("secret", secret)
        return Keys(secret, required=not loopback(self.spec.hosts.bind_host), admin=self.spec.admin_key)

    def _journal(self) -> Journal | None:
        path = journal_path(self.spec)
        if path is None:
            return None
        journal = Journal(path)
        journal.open()
        self._stack.push_async_callback(journal.close)
        return journal


def url_of(spec: SessionSpec, listener: socket.socket) -> str:
    """What others reach the server at."""
    return f"http://{bracketed(reachable(spec.hosts.public_host))}:{listener.getsockname()[1]}"


def journal_path(spec: SessionSpec) -> Path | None:
    """Where this server's journal lies, None for no journal.

    The default is in the run folder, unless that is on a network file system: then it is in the node's temp folder.
    """
    options = spec.options
    if not options.session_journal or (options.session_journal_dir is None and spec.run_dir is None):
        return None
    folder = Path(options.session_journal_dir or f"{spec.run_dir}/sessions").absolute()
    if network := network_file_system(folder):
        if options.session_journal_dir is not None:
            log.warning(
                "--session-journal-dir %s is on %s: commits are slow there, and locks may fail", folder, network
            )
        else:
            name = f"{Path(str(spec.run_dir)).name}-{sha256(str(folder).encode()).hexdigest()[:8]}"
            log.info("%s is on %s: the session journal goes to this node's temp folder", folder, network)
            folder = Path(lasting()) / "miles_lite-sessions" / name
    return folder / f"sessions-{spec.index}.sqlite"


NAME_A_PARSER = "name the parsers by --sglang-reasoning-parser and --sglang-tool-call-parser"


def load_tito(spec: SessionSpec) -> Tito:
    """The model's text; what of it is not read is said in the log. Raises UserError."""
    tito = model_text(spec.model_path, spec.options, spec.engines, longest=spec.context_length)
    if tito.flaw:
        log.warning("replies are not read as this model writes them: %s; %s", tito.flaw, NAME_A_PARSER)
    return tito


def listen(spec: SessionSpec) -> socket.socket:
    """A bound and listening socket. Raises UserError."""
    host = spec.hosts.bind_host
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, spec.port or 0))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UserError(
            f"session server {spec.index} cannot listen on {host}:{spec.port or 0} ({error.strerror}): "
            "free the port, or choose another with --session-server-port, or another --bind-host"
        ) from error
    return listener
