"""The process that serves sessions: `python -m miles_lite.session.worker FD`, kept alive by supervisor.py.

Invariant: what was loaded before it is ready is never looked at by the garbage collector again.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable

from miles_lite import supervised
from miles_lite.session import logs
from miles_lite.session.server import SessionServer, SessionSpec
from miles_lite.stopping import stop_requested


def main(fd: int) -> int:
    logs.configure()
    return supervised.run(_serve, fd)


async def _serve(spec: SessionSpec, listener: socket.socket, ready: Callable[[], None]) -> None:
    stop = stop_requested()
    server = SessionServer(spec, listener)
    await server.start()
    gc.collect()
    gc.freeze()  # collections look at sessions alone
    try:
        ready()
        await stop.wait()
    finally:
        await server.stop()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
