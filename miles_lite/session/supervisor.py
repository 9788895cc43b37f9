"""Keeps a session server alive: holds its listening socket, and starts its worker process again whenever that ends.

Invariant: from `start` to `stop` the socket listens. While no worker serves it, this process answers 503 with
Retry-After, so that clients come back instead of failing. No worker outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import aiohttp
from aiohttp import web

from miles_lite.errors import UserError
from miles_lite.net import EVERYWHERE, bracketed
from miles_lite.session.app import refusal
from miles_lite.session.errors import ApiError
from miles_lite.session.metrics import GAUGES
from miles_lite.session.server import BACKLOG, SessionSpec, listen, url_of
from miles_lite.session.worker import READY

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "miles_lite.session.worker")
START_SECONDS = 60.0
STOP_SECONDS = 4.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Supervisor:
    """One supervised session server. `url` is known from `start` on."""

    def __init__(self, spec: SessionSpec, *, command: Sequence[str] = COMMAND) -> None:
        """`command` starts a worker; it is given the socket's number."""
        self.spec = spec if spec.secret else replace(spec, secret=secrets.token_hex(32))
        self._command = command
        self.url = ""
        self.restarts = 0
        self._listener: socket.socket | None = None
        self._worker: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession | None = None
        self._past: Counter[str] = Counter()
        self._last: dict[str, float] = {}

    @property
    def worker_pid(self) -> int | None:
        return self._worker.pid if self._worker else None

    async def start(self) -> str:
        """Bind, and wait for the first worker; returns the URL. Raises UserError."""
        self._listener = listen(self.spec)
        try:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0))
            self._worker = await self._launch(self._listener)
        except BaseException:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._watch(self._listener))
        self.url = url_of(self.spec, self._listener)
        return self.url

    async def stats(self) -> dict[str, float]:
        """The worker's counters, with those of the workers before it as far as they were seen; `worker_restarts`."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            if self._http is not None and self._listener is not None:
                async with self._http.get(f"{self._local_url(self._listener)}/health") as response:
                    if response.status == 200:
                        body = await response.json()
                        self._last = {name: value for name, value in body.items() if isinstance(value, int | float)}
        total = {name: value + (0 if name in GAUGES else self._past[name]) for name, value in self._last.items()}
        return total | {"worker_restarts": float(self.restarts)}

    async def stop(self) -> None:
        """End the worker, then let go of the socket. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._worker is not None:
            await _end(self._worker)
        if self._http is not None:
            await self._http.close()
        if self._listener is not None:
            self._listener.close()
        self._watching = self._worker = self._http = self._listener = None

    async def _watch(self, listener: socket.socket) -> None:
        """Start the worker again whenever it has ended."""
        while True:
            assert self._worker is not None
            code = await self._worker.wait()
            began = time.monotonic()
            log.warning("session server %d: its worker ended (exit code %d)", self.spec.index, code)
            self.restarts += 1
            self._past.update({name: int(value) for name, value in self._last.items() if name not in GAUGES})
            self._last = dict.fromkeys(self._last, 0.0)
            async with _standing_in(listener):
                self._worker = await self._relaunch(listener)
            log.warning("session server %d: serves again after %.1f s", self.spec.index, time.monotonic() - began)

    async def _relaunch(self, listener: socket.socket) -> asyncio.subprocess.Process:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._launch(listener)
            except UserError as error:
                log.error("session server %d cannot be started again: %s", self.spec.index, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _launch(self, listener: socket.socket) -> asyncio.subprocess.Process:
        """A worker that is ready. Raises UserError with its reason."""
        worker = await asyncio.create_subprocess_exec(
            *self._command,
            str(listener.fileno()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                worker.stdin.write(pickle.dumps(self.spec))
                await worker.stdin.drain()
                said = (await worker.stdout.read(65536)).decode()
        except TimeoutError:
            said = f"its worker was not ready within {START_SECONDS:g} s"
        except (BrokenPipeError, ConnectionResetError):
            said = ""
        except BaseException:
            await _end(worker)
            raise
        if said.strip() != READY:
            await _end(worker)
            reason = said.strip() or f"its worker ended with exit code {worker.returncode}: its log says why"
            raise UserError(reason)
        return worker

    def _local_url(self, listener: socket.socket) -> str:
        host = "127.0.0.1" if self.spec.bind_host in EVERYWHERE else self.spec.bind_host
        return f"http://{bracketed(host)}:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def _standing_in(listener: socket.socket) -> AsyncIterator[None]:
    """Answer every request with 503 while no worker does."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", _unavailable)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
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


async def _end(worker: asyncio.subprocess.Process) -> None:
    """SIGTERM, so that the journal is closed; after STOP_SECONDS SIGKILL to it and whatever it started."""
    if worker.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.wait(), STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    await worker.wait()
    if worker.stdin is not None:
        worker.stdin.close()
