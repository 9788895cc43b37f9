"""The process that routes: `python -m miles_lite.router.server FD SPEC`, started by supervise.py.

Invariant: it serves on the listening socket it inherited as FD, writes a line when it does, and ends when its stdin
closes, which the kernel sees to when its parent ends in whatever way.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import os
import socket
import sys

from miles_lite.errors import UserError
from miles_lite.router.app import Router, run_app
from miles_lite.router.spec import RouterSpec
from miles_lite.stopping import stop_requested

GARBAGE = 50_000
"""Objects between collections. Requests leave no cycles behind; with hundreds in flight the default looks for them in
vain so often that it costs a quarter of the throughput."""


def main(argv: list[str]) -> int:
    """Serve until told to end. Returns the exit code; 2 with a message on stderr for what a user can mend."""
    listener = socket.socket(fileno=int(argv[0]))
    spec = RouterSpec(**json.loads(argv[1]))
    try:
        router = Router(spec)
        gc.freeze()
        gc.set_threshold(GARBAGE, 50, 50)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(router, listener))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _serve(router: Router, listener: socket.socket) -> None:
    loop, ended = asyncio.get_running_loop(), stop_requested()
    loop.add_reader(sys.stdin.fileno(), os._exit, 1)  # at once: the next router may want the port
    runner = await run_app(router, listener)
    print("ready", flush=True)
    await ended.wait()
    await runner.cleanup()


def command(spec: RouterSpec, listener: socket.socket) -> list[str]:
    """The command line of the process that serves `spec` on `listener`."""
    return [sys.executable, "-m", __name__, str(listener.fileno()), json.dumps(dataclasses.asdict(spec))]


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: a fifth more requests per second."""
    try:
        import uvloop
    except ImportError:
        return None
    loop: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return loop


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
