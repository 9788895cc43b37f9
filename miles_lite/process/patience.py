"""A wait that does not stay silent: it has a bound, and says at half of it what it waits for.

Invariant: pure but for the clock; it says one line at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from miles_lite.errors import UnavailableError

T = TypeVar("T")

LOOK_SECONDS = 1.0


def _nothing() -> str:
    return ""


class Patience:
    """For `what`, `seconds` from now, or from when there was something to see last."""

    def __init__(self, what: str, seconds: float, notify: Callable[[str], None]) -> None:
        self._what, self.seconds, self._notify = what, seconds, notify
        self._since = time.monotonic()
        self._said = False

    def renew(self) -> None:
        """There was something to see: it begins anew."""
        self._since, self._said = time.monotonic(), False

    def over(self, more: Callable[[], str] = _nothing) -> bool:
        """Whether it has come to its end. At half of it says what is waited for, and `more`, which is asked then."""
        waited = time.monotonic() - self._since
        if waited > self.seconds / 2 and not self._said:
            self._said = True
            after = f"; {told}" if (told := more()) else ""
            self._notify(f"waiting for {self._what} since {waited:.0f} s, at most {self.seconds:.0f} s{after}")
        return waited > self.seconds

    def ended(self, more: str) -> UnavailableError:
        """What its end is raised as, with what is known then."""
        return UnavailableError(f"waited {self.seconds:.0f} s for {self._what}; {more}")


async def at_most(seconds: float, coming: Awaitable[object]) -> None:
    """Wait for `coming`, no longer than so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await coming


async def patiently(
    coming: Awaitable[T],
    patience: Patience,
    more: Callable[[], str] = _nothing,
    *,
    hint: str = "",
    at_end: Callable[[], None] = lambda: None,
) -> T:
    """What `coming` gives. Raises UnavailableError with `more` and `hint` where that takes longer than `patience`
    lasts; before it is cancelled then, `at_end` looks, in a thread, at who was waited for."""
    task = asyncio.ensure_future(coming)
    try:
        while not (await asyncio.wait({task}, timeout=min(LOOK_SECONDS, patience.seconds / 4)))[0]:
            if patience.over(more):
                known = "; ".join(filter(None, (more(), hint)))
                await asyncio.to_thread(at_end)
                raise patience.ended(known)
        return task.result()
    finally:
        task.cancel()
