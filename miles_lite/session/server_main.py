"""The process that serves sessions: `python -m miles_lite.session.server_main FD`, kept alive by supervised_server.py.

Invariant: it serves on the listening socket it inherited as FD until it is told to end.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from miles_lite.process import supervised
from miles_lite.process.stopping import stop_requested
from miles_lite.session import logs
from miles_lite.session.server import SessionServer, SessionSpec

SWITCH_SECONDS = 0.001
"""The longest that a thread with a large request keeps the event loop from running, where it runs Python."""


def main(fd: int) -> int:
    logs.configure()
    sys.setswitchinterval(SWITCH_SECONDS)
    return supervised.run(_serve, fd)


async def _serve(spec: SessionSpec, listener: socket.socket, ready: Callable[[], None]) -> None:
    stop = stop_requested()
    server = SessionServer(spec, listener)
    await server.start()
    try:
        ready()
        await stop.wait()
    finally:
        await server.stop()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
