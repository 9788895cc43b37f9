"""Asks a fork server (fork_server_main.py) to run a command.

Invariant: this file stands alone: nothing of miles_lite is imported, so that who imports little can ask, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence

FORK_SECONDS = 60.0
"""How long it may take to fork: it imports first."""


def forked(at: str, command: Sequence[str], environment: Mapping[str, str], *, seconds: float | None = None) -> bool:
    """Have the fork server at this socket run `command` ([python, "-m" or "-c", ...]) with this process's output, and
    wait until it has ended, for so many seconds at most; then it is ended. False where nothing was run."""
    line = json.dumps({"command": list(command), "env": dict(environment), "folder": os.getcwd()}).encode() + b"\n"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(FORK_SECONDS)
        connection.connect(at)
        socket.send_fds(connection, [line[:1]], [1, 2])
        connection.sendall(line[1:])
        if connection.recv(64).strip():
            connection.settimeout(seconds)
            with contextlib.suppress(OSError):
                connection.recv(1)
            return True
    return False
