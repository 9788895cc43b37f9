"""A session server that is kept alive: its URL, and its counters through restarts.

Invariant: from `start` to `stop` the socket listens. While no process serves it, this one answers 503 with
Retry-After, so that clients come back instead of failing.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import aiohttp
from aiohttp import web

from miles_lite.process.addresses import bracketed, local
from miles_lite.process.http_log import refuse_expectations
from miles_lite.process.supervisor import SILENCE_SECONDS, Program, Supervised
from miles_lite.session.counters import GAUGES
from miles_lite.session.errors import ApiError
from miles_lite.session.http.app import refusal
from miles_lite.session.server import BACKLOG, SessionSpec, listen, url_of

COMMAND = (sys.executable, "-m", "miles_lite.session.server_main")
STATS_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class Supervisor:
    """One supervised session server. `url` is known from `start` on."""

    def __init__(
        self, spec: SessionSpec, *, command: Sequence[str] = COMMAND, silence: float = SILENCE_SECONDS
    ) -> None:
        """`command` starts the process that serves; one that shows no life for `silence` seconds is replaced."""
        self.spec = spec if spec.secret else replace(spec, secret=secrets.token_hex(32))
        program = Program(name=f"session server {spec.index}", command=command, spec=self.spec)
        self._supervised = Supervised(program, stand_in=self._standing_in, silence=silence)
        self.url = ""
        self._local_url = ""
        self._past: Counter[str] = Counter()
        self._last: dict[str, float] = {}

    @property
    def worker_pid(self) -> int | None:
        """The process that serves."""
        return self._supervised.pid

    @property
    def restarts(self) -> int:
        return self._supervised.restarts

    @property
    def steady(self) -> float:
        """Seconds since a worker was last lost; infinite if none was."""
        return self._supervised.steady

    async def start(self) -> str:
        """Bind, and wait for the first worker; returns the URL. Raises UserError."""
        listener = listen(self.spec)
        self._local_url = f"http://{bracketed(local(self.spec.hosts.bind_host))}:{listener.getsockname()[1]}"
        await self._supervised.start(listener)
        self.url = url_of(self.spec, listener)
        return self.url

    async def stats(self) -> dict[str, float]:
        """The worker's counters, with those of the workers before it as far as they were seen; `worker_restarts`."""
        if self.worker_pid is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with (
                    aiohttp.ClientSession(timeout=STATS_TIMEOUT) as http,
                    http.get(f"{self._local_url}/health") as response,
                ):
                    if response.status == 200:
                        body = await response.json()
                        self._last = {name: value for name, value in body.items() if isinstance(value, int | float)}
        total = {name: value + (0 if name in GAUGES else self._past[name]) for name, value in self._last.items()}
        return total | {"worker_restarts": float(self.restarts)}

    async def stop(self) -> None:
        """End the worker, then let go of the socket. Idempotent."""
        await self._supervised.stop()

    @contextlib.asynccontextmanager
    async def _standing_in(self, listener: socket.socket) -> AsyncIterator[None]:
        """Keep what the last worker counted, and answer every request with 503 until the next one does."""
        self._past.update({name: int(value) for name, value in self._last.items() if name not in GAUGES})
        self._last = dict.fromkeys(self._last, 0.0)
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", _unavailable)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        refuse_expectations(runner)
        try:
            await web.SockSite(runner, listener.dup(), backlog=BACKLOG).start()
            yield
        finally:
            await runner.cleanup()


async def _unavailable(request: web.Request) -> web.Response:
    error = ApiError(503, "the session server is being restarted; what it has answered is kept", code="restarting")
    response = refusal(request, error)
    response.headers["Retry-After"] = "1"
    response.force_close()
    return response
