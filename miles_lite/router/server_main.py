"""The process that routes: `python -m miles_lite.router.server_main FD`, kept alive by supervised_router.py.

Invariant: it serves on the listening socket it inherited as FD until it is told to end.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from miles_lite.process import supervised
from miles_lite.process.stopping import stop_requested
from miles_lite.router.app import Router
from miles_lite.router.paths import run_app
from miles_lite.router.spec import RouterSpec


async def _serve(spec: RouterSpec, listener: socket.socket, ready: Callable[[], None]) -> None:
    ended = stop_requested()
    runner = await run_app(Router(spec), listener)
    ready()
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    os._exit(supervised.run(_serve, int(sys.argv[1])))
