"""A sandbox that an episode has from a pool, and threads for what blocks.

Invariant: what was had is given back, also where the episode ended before it had started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import ParamSpec, TypeVar

from miles_lite.sandboxes.lending import Pool
from miles_lite.sandboxes.sandbox import Sandbox

P = ParamSpec("P")
T = TypeVar("T")
THREADS = ThreadPoolExecutor(256, thread_name_prefix="sandboxes")
"""Commands block."""


class Borrowed:
    """Its calls block; `close` may come from another thread than `open`, while that one waits."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._open, self._closed = pool, ExitStack(), False

    def open(self, image: str | None = None, *, workdir: str | None = None) -> Sandbox:
        """Raises RolloutError and UserError as the pool does, and RuntimeError where nobody waits any more."""
        lease = self._open.enter_context(self._pool.open(image, workdir=workdir))
        if self._closed:
            self._open.close()
            raise RuntimeError("the episode ended before its sandbox had started")
        return lease.sandbox

    def close(self) -> None:
        self._closed = True
        self._open.close()


async def run_in_thread(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(THREADS, partial(work, *given, **named))
