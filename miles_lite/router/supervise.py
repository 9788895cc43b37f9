"""Keeps the routing process alive, on one port.

Invariant: the listening socket is the parent's, so while the process is started again clients wait in its backlog
instead of being refused; the process ends with its parent, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.router.gateway import free_port
from miles_lite.router.server import command
from miles_lite.router.spec import RouterSpec, listen, url_of

log = logging.getLogger(__name__)
START_SECONDS = 30.0
STOP_SECONDS = 5.0
STEADY_SECONDS = 5.0
"""A process that lived this long is started again at once; one that did not, after a pause that doubles up to it."""


class Supervisor:
    """One router: its socket, and the process that serves it."""

    def __init__(self, spec: RouterSpec, *, gateway: bool = False) -> None:
        """gateway: data goes through the Rust gateway, on `spec.gateway_port`, or on one that is chosen here once."""
        self._spec = replace(spec, gateway_port=spec.gateway_port or free_port()) if gateway else spec
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self.url = ""
        self.restarts = 0

    @property
    def data_url(self) -> str:
        """Where generation requests go: the gateway, else the router itself."""
        if self._spec.gateway_port is None:
            return self.url
        return f"{self.url.rpartition(':')[0]}:{self._spec.gateway_port}"

    @property
    def pid(self) -> int | None:
        """The routing process's."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Listen and serve; returns the URL others are told. Idempotent. Raises UserError when it cannot."""
        if self._listener is None:
            self._listener = listen(self._spec)
            self.url = url_of(self._spec, self._listener)
            try:
                await self._launch(self._listener)
            except BaseException:
                await self.stop()
                raise
            self._watching = asyncio.create_task(self._watch(self._listener))
        return self.url

    async def stop(self) -> None:
        """End the process and release the port; requests in flight are cut. Idempotent."""
        watching, self._watching = self._watching, None
        if watching:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        process, self._process = self._process, None
        if process and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        listener, self._listener = self._listener, None
        if listener:
            listener.close()

    async def _launch(self, listener: socket.socket) -> None:
        """Start the process; returns once it serves. Raises UserError with its words when it does not."""
        self._process = process = await asyncio.create_subprocess_exec(
            *command(self._spec, listener),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_environment(os.environ),
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        except TimeoutError:
            process.kill()
            line = b""
        if line != b"ready\n":
            code = await process.wait()
            raise UserError(f"the router's process did not start (exit code {code}); its words are on stderr")

    async def _watch(self, listener: socket.socket) -> None:
        pause = 0.0
        while True:
            assert self._process is not None
            began = time.monotonic()
            code = await self._process.wait()
            self.restarts += 1
            pause = 0.0 if time.monotonic() - began > STEADY_SECONDS else min(max(2 * pause, 0.1), STEADY_SECONDS)
            log.warning("router %s ended with code %s; starting it again (%d so far)", self.url, code, self.restarts)
            await asyncio.sleep(pause)
            try:
                await self._launch(listener)
            except UserError as error:
                log.error("router %s: %s", self.url, error)


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited`, with the folder of this package on the path."""
    home = str(Path(__file__).parents[2])
    path = [entry for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != home]
    return {**inherited, "PYTHONPATH": os.pathsep.join([home, *path])}
