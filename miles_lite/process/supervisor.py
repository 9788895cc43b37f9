"""Keeps a server process alive on a listening socket that outlives it.

The parent holds the socket, so that clients find it open while the process is started again: they wait in its backlog,
or are answered by a stand-in. The other side is `supervised`.
Invariant: between `start` and `stop` a process that ended, or showed no life for a while, is started again, at once or
after a pause that doubles while it keeps failing. Its whole process group ends with it, and it with its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from miles_lite.errors import UserError
from miles_lite.process.patience import at_most
from miles_lite.process.supervised import READY
from miles_lite.process.undo import undone

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 4.0
SILENCE_SECONDS = 30.0
"""Longer than an event loop is busy with one big request, on a machine that is busy with others."""
STEADY_SECONDS = 5.0
"""A process that served this long is started again at once."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LOOKS = 10

StandIn = Callable[[socket.socket], AbstractAsyncContextManager[None]]


def wait_in_backlog(_listener: socket.socket) -> AbstractAsyncContextManager[None]:
    """The stand-in that answers nobody."""
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is kept alive.

    name      who it is, in logs and errors
    command   starts it; it is given the socket's number
    spec      what it is told, on stdin: any object that can be pickled
    """

    name: str
    command: Sequence[str]
    spec: Any


class Supervised:
    """One program, kept alive on one listening socket."""

    def __init__(
        self, program: Program, *, stand_in: StandIn = wait_in_backlog, silence: float = SILENCE_SECONDS
    ) -> None:
        """`stand_in` answers on the socket while no process does; `silence`: seconds without a sign of life after
        which a process hangs. Time in which this process did not run either does not count."""
        self._program = program
        self._stand_in = stand_in
        self._silence = silence
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._lost = -math.inf
        self.restarts = 0

    @property
    def steady(self) -> float:
        """Seconds since a process was last lost; infinite if none was."""
        return time.monotonic() - self._lost

    @property
    def pid(self) -> int | None:
        """The process that serves; None before `start` and after `stop`."""
        return self._process.pid if self._process else None

    async def start(self, listener: socket.socket) -> None:
        """Serve on `listener`, which is closed by `stop`. Raises UserError with the process's reason; nothing is left
        then."""
        self._listener = listener
        async with undone(self.stop):
            self._process = await self._launch(listener)
        self._keeping = asyncio.create_task(self._keep(self._process, listener))

    async def stop(self) -> None:
        """End the process, then let go of the socket. Idempotent."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    async def _keep(self, process: asyncio.subprocess.Process, listener: socket.socket) -> None:
        pause = 0.0
        while True:
            began = time.monotonic()
            reason = await self._ailment(process)
            self._lost = lost = time.monotonic()
            pause = 0.0 if lost - began > STEADY_SECONDS else _longer(pause)
            self.restarts += 1
            log.warning("%s (process %d) %s; starting it again", self._program.name, process.pid, reason)
            await _end(process, asking=False)
            async with self._stand_in(listener):
                self._process = process = await self._relaunch(listener, pause)
            log.warning("%s serves again after %.1f s", self._program.name, time.monotonic() - lost)

    async def _ailment(self, process: asyncio.subprocess.Process) -> str:
        """What became of it, once it has ended or shown no life for too long."""
        assert process.stdout is not None
        look, silent = self._silence / _LOOKS, 0
        while silent < _LOOKS:  # looks, not seconds: when this loop was held up, its timer and the byte come together
            try:
                async with asyncio.timeout(look):
                    heard = await process.stdout.read(4096)
            except TimeoutError:
                heard = b""
                silent += 1
            if heard:
                silent = 0
            elif process.returncode is not None or process.stdout.at_eof():
                await at_most(STOP_SECONDS, process.wait())
                return f"ended with exit code {process.returncode}"
        return f"hangs: waited {self._silence:g} s for a sign of life from its event loop"

    async def _relaunch(self, listener: socket.socket, pause: float) -> asyncio.subprocess.Process:
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._launch(listener)
            except (UserError, OSError) as error:  # OSError: no memory, processes or files for it just now
                pause = _longer(pause)
                log.error("%s; it is tried again after %.1f s", error, pause)

    async def _launch(self, listener: socket.socket) -> asyncio.subprocess.Process:
        """A process that is ready. Raises UserError with its reason."""
        process = await asyncio.create_subprocess_exec(
            *self._program.command,
            str(listener.fileno()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        async with undone(lambda: _end(process, asking=False)):
            said = await _first_words(process, pickle.dumps(self._program.spec))
        if said == READY:
            return process
        await _end(process)
        reason = said.decode().strip() or f"its process ended with exit code {process.returncode}: its log says why"
        raise UserError(f"{self._program.name} cannot start: {reason}")


async def _first_words(process: asyncio.subprocess.Process, spec: bytes) -> bytes:
    """READY, or all that it said instead before it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            process.stdin.write(spec)
            await process.stdin.drain()
            said = await process.stdout.readline()
            return said if said == READY else said + await process.stdout.read()
    except TimeoutError:
        return f"its process was not ready within {START_SECONDS:g} s".encode()
    except (BrokenPipeError, ConnectionResetError):
        return b""


async def _end(process: asyncio.subprocess.Process, *, asking: bool = True) -> None:
    """Ask it with SIGTERM, so that it closes its files; after STOP_SECONDS, or at once, SIGKILL to its group."""
    if asking and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        await at_most(STOP_SECONDS, process.wait())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await at_most(STOP_SECONDS, process.wait())
    if process.stdin is not None:
        process.stdin.close()


def _longer(pause: float) -> float:
    return min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
