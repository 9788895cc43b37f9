"""One guarded server process: started, awaited until healthy, ended with everything it spawned.

Invariant: once `ServerProcess.stop` returned, or its owner died in any way, no process of the server is left;
server_guard.py sees to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from miles_lite.engine.guards import GUARD, ExecutedGuard, ForkedGuard, Guard
from miles_lite.errors import UserError
from miles_lite.process.probe import answers
from miles_lite.process.stacks import stacks_folder, write_stacks

if TYPE_CHECKING:  # what stands alone is not imported
    from miles_lite.process.fork_server_main import GuardedRequest

FORK_SERVER = "MILES_LITE_FORK_SERVER"
"""An environment variable: the socket of a fork server (fork_server_main.py)."""
IMPORT_SECONDS = 120.0
"""How long a fork server may take to answer: it imports SGLang first."""
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL: the server holds nothing worth a slow farewell."""
HEALTH_SECONDS = 5.0
TAIL_LINES = 25
LINE_LENGTH = 300
"""Characters of a log line that are shown: SGLang prints all its settings in one of 20,000."""
LOST_PORT = ("address already in use", "port is already in use", "is not available")


class ServerProcess:
    """A server behind its guard. Build it with `ServerProcess.launch`."""

    def __init__(self, guard: Guard, *, log_path: Path, log_start: int) -> None:
        self.pid = guard.server
        self.log_path = log_path
        self._guard = guard
        self._log_start = log_start

    @classmethod
    def launch(
        cls, command: Sequence[str], *, env: Mapping[str, str], log_path: Path, secrets: Sequence[str] = ()
    ) -> Self:
        """Start `command`; its output is appended to `log_path`, without `secrets`. Forked where `env` names a fork
        server that takes it, executed elsewhere. Raises UserError."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_start = log_path.stat().st_size if log_path.exists() else 0
        request: GuardedRequest = {
            "command": list(command),
            "env": dict(env),
            "folder": os.getcwd(),
            "guard": str(GUARD),
            "log": str(log_path),
            "grace": GRACE,
            "secrets": list(secrets),
        }
        at = env.get(FORK_SERVER)
        guard = ForkedGuard.at(at, request, seconds=IMPORT_SECONDS) if at else None
        return cls(guard or ExecutedGuard(request), log_path=log_path, log_start=log_start)

    @property
    def exit_code(self) -> int | None:
        """None while the server lives."""
        return self._guard.exit_code

    async def wait_healthy(self, url: str, timeout: float) -> None:
        """Return when GET {url}/health says 200. Raises UserError when the server ends or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while self.exit_code is None:
            if await answers(f"{url}/health", seconds=HEALTH_SECONDS):
                return
            if time.monotonic() > deadline:
                await asyncio.to_thread(self.write_stacks)
                raise UserError(
                    f"the SGLang server was not healthy after {timeout:g} s ({url}/health).\n{self._tail()}\n"
                    "  A slow machine or a big model: raise --engine-start-timeout."
                )
            await asyncio.sleep(0.1)
        raise UserError(
            f"the SGLang server ended with exit code {self.exit_code} before it was healthy.\n{self._tail()}\n"
            "  The last lines say why; SGLang's own options are passed as --sglang-NAME."
        )

    def lost_port(self) -> bool:
        """True when the server ended because another process had taken its port."""
        log = "\n".join(self._lines()).lower()
        return self.exit_code is not None and any(words in log for words in LOST_PORT)

    async def wait(self) -> None:
        """Return as soon as the server itself has ended; the guard may still be ending what it spawned."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        with contextlib.ExitStack() as ending:
            ending.callback(os.close, handle)
            loop.add_reader(handle, ended.set)
            ending.callback(loop.remove_reader, handle)
            await ended.wait()

    def write_stacks(self) -> None:
        """Leave what the server's processes are at beside its log."""
        write_stacks(stacks_folder(self.log_path.parent), {self.log_path.stem: self.pid})

    def kill(self) -> None:
        """End the server's process group at once: what hangs heeds nothing else."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the server and everything it spawned. Idempotent; takes at most a few seconds."""
        self._guard.release()
        deadline = time.monotonic() + GRACE + 5.0
        while self._guard.exit_code is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self._guard.kill()

    def _lines(self) -> list[str]:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").splitlines()

    def _tail(self) -> str:
        lines = [line for line in self._lines() if line.strip()][-TAIL_LINES:]
        cut = (line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]} ..." for line in lines)
        shown = "\n".join(f"    {line}" for line in cut) or "    (it wrote nothing)"
        return f"  Last lines of {self.log_path}:\n{shown}"


async def wait_healthy(url: str, timeout: float) -> None:
    """The same for a server that somebody else started."""
    deadline = time.monotonic() + timeout
    while not await answers(f"{url}/health", seconds=HEALTH_SECONDS):
        if time.monotonic() > deadline:
            raise UserError(
                f"no SGLang server answered at {url}/health within {timeout:g} s.\n"
                "  Start it, correct --rollout-external-engine-addrs, or raise --engine-start-timeout."
            )
        await asyncio.sleep(0.5)
