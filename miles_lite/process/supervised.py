"""What a process does that `supervisor` keeps alive: it serves on a socket it inherits, and shows that it lives.

Invariant: it lives no longer than its parent, whose end closes its stdin. To its parent it says `ready`, or why it
cannot be, and from then on a byte every BEAT_SECONDS, from its event loop; whatever else it prints goes to stderr. What
it had when it became ready is never looked at by the garbage collector again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from miles_lite.errors import UserError
from miles_lite.process.uncollected import begins_to_serve

READY = b"ready\n"
BEAT_SECONDS = 0.5

Serve = Callable[[Any, socket.socket, Callable[[], None]], Coroutine[Any, Any, None]]


def run(serve: Serve, fd: int) -> int:
    """Run `serve(spec, listener, ready)`: the spec comes on stdin, the listening socket is `fd`; call `ready` once it
    serves. Returns the exit code: 2 when it raised UserError, whose words the parent gets."""
    spec = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    parent = os.dup(1)
    os.dup2(2, 1)
    os.set_blocking(parent, False)
    try:
        uvloop.run(serve(spec, socket.socket(fileno=fd), lambda: _ready(parent)))
    except UserError as error:
        os.write(parent, str(error).encode())
        return 2
    return 0


def _ready(parent: int) -> None:
    begins_to_serve()
    _beat(parent, READY)


def _beat(parent: int, said: bytes) -> None:
    """Say it, and go on showing life. A parent that does not listen just now misses nothing."""
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(parent, said)
    asyncio.get_running_loop().call_later(BEAT_SECONDS, _beat, parent, b".")


def _end_with_parent() -> None:
    """Nothing more is said on stdin: its end is the parent's end, at which an event loop may be stuck."""
    while os.read(0, 4096):
        pass
    os._exit(1)
