"""Work that would hold up the event loop, in threads of its own.

Invariant: what is expected to take more than a few milliseconds does not run on the loop; what takes less does, because
a thread's round trip is not free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")

HEAVY_BYTES = 16 * 1024
"""Of JSON that was not seen before: to parse, render and tokenize it takes some three milliseconds."""
HEAVY_SECONDS = 0.003
_THREADS = 2


class OffLoop:
    """A few threads: one large request waits for another, and small ones for none."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="session-heavy")

    async def run(self, work: Callable[[], T], *, heavy: bool) -> T:
        """What `work` returns, on a thread if it is `heavy`."""
        if not heavy:
            return work()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                told = partial(_resolve, done, work())
            except BaseException as error:  # noqa: BLE001 - whoever waits for it raises it
                told = partial(_fail, done, error)
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(told)

        self._threads.submit(job)
        return await done

    def close(self) -> None:
        """Work that has begun is left to end by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _resolve(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
