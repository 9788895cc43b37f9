"""What stands between an owner and its server: a process of its own, executed or forked (server_guard.py).

Invariant: the guard has ended, and with it all of its server, when `exit_code` says so; it ends its server when it is
released or killed, or when this process ends in any way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from miles_lite.errors import UserError

if TYPE_CHECKING:  # what stands alone is not imported
    from miles_lite.process.fork_server_main import GuardedRequest

GUARD = Path(__file__).with_name("server_guard.py")
KILLED = 128 + signal.SIGKILL


class Guard(Protocol):
    """`server`: the pid of what is guarded."""

    server: int

    @property
    def exit_code(self) -> int | None:
        """The server's; None while anything of it lives."""

    def release(self) -> None:
        """Have it end its server. Idempotent."""

    def kill(self) -> None:
        """End it at once, and return when it has ended. Idempotent."""


class ExecutedGuard:
    """A child of this process."""

    def __init__(self, request: GuardedRequest) -> None:
        """Raises UserError when it does not start."""
        command = request["command"]
        self._process = guard = subprocess.Popen(
            [sys.executable, "-I", "-S", request["guard"], request["log"], str(request["grace"]), "--", *command],
            env=request["env"],
            cwd=request["folder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then it says nothing either
            guard.stdin.write(f"{json.dumps(request['secrets'])}\n")
            guard.stdin.flush()
        first_line = guard.stdout.readline()
        if not first_line:
            raise UserError(f"could not start {command[0]}: its guard exited with {guard.wait()}, see stderr above")
        self.server = int(first_line)

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class ForkedGuard:
    """A child of a fork server (fork_server_main.py), at the other end of `connection`."""

    def __init__(self, connection: socket.socket, pid: int, server: int) -> None:
        self.server = server
        self._connection, self._pid = connection, pid
        self._code: int | None = None

    @classmethod
    def at(cls, fork_server: str, request: GuardedRequest, *, seconds: float) -> ForkedGuard | None:
        """None where no fork server answers there in time, or it says that the command is to be executed."""
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.ExitStack() as failing, contextlib.suppress(OSError):
            failing.callback(connection.close)
            connection.settimeout(seconds)
            connection.connect(fork_server)
            connection.sendall(f"{json.dumps(request)}\n".encode())
            if told := _line(connection).split():
                failing.pop_all()
                pid, server = map(int, told)
                return cls(connection, pid, server)
        return None

    @property
    def exit_code(self) -> int | None:
        if self._code is None:
            self._connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                told = _line(self._connection)
                self._code = int(told) if told else KILLED
        return self._code

    def release(self) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._connection.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._connection.settimeout(None)
            _line(self._connection)
            self._code = KILLED
        self._connection.close()


def _line(connection: socket.socket) -> str:
    """The next one, which was sent as a whole; empty at the end. Raises OSError."""
    with contextlib.suppress(ConnectionResetError):
        there = connection.recv(64, socket.MSG_PEEK)  # what follows it may be there, too: of a server that ends at once
        return connection.recv(there.find(b"\n") + 1).decode()
    return ""
