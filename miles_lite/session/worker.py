"""The process that serves sessions on a socket that it inherits: `python -m miles_lite.session.worker FD`.

Invariant: it lives no longer than its supervisor, whose end closes its stdin. Its first line on stdout is `ready` or
why it cannot be; everything after that goes to stderr.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable

import uvloop

from miles_lite.errors import UserError
from miles_lite.session import heap, logs
from miles_lite.session.server import SessionServer, SessionSpec
from miles_lite.stopping import stop_requested

READY = "ready"
_YOUNG = 50_000
"""New containers between collections: an engine's answer alone is thousands of lists, one per token."""


def main(fd: int) -> int:
    logs.configure()
    spec: SessionSpec = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    says = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        uvloop.run(_serve(spec, socket.socket(fileno=fd), lambda: print(READY, file=says, flush=True)))
    except UserError as error:
        print(str(error), file=says, flush=True)
        return 2
    return 0


async def _serve(spec: SessionSpec, listener: socket.socket, ready: Callable[[], None]) -> None:
    stop = stop_requested()
    server = SessionServer(spec, listener)
    await server.start()
    gc.collect()
    gc.freeze()  # what was loaded stays; collections look at sessions alone
    gc.set_threshold(_YOUNG)
    heap.give_back()
    try:
        ready()
        await stop.wait()
    finally:
        await server.stop()


def _end_with_supervisor() -> None:
    """Nothing more is said on stdin: its end is the supervisor's end, at which an event loop may be stuck."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
