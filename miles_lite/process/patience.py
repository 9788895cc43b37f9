"""A wait that does not stay silent: it has a bound, and says at half of it what it waits for.

Invariant: pure but for the clock; it says one line at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """For `what`, `seconds` from now, or from when there was something to see last."""

    def __init__(self, what: str, seconds: float, say: Callable[[str], None]) -> None:
        self._what, self.seconds, self._say = what, seconds, say
        self._since = time.monotonic()
        self._said = False

    def renew(self) -> None:
        """There was something to see: it begins anew."""
        self._since, self._said = time.monotonic(), False

    def over(self, more: str = "") -> bool:
        """Whether it has come to its end. At half of it says what is waited for, and `more`."""
        waited = time.monotonic() - self._since
        if waited > self.seconds / 2 and not self._said:
            self._said = True
            after = f"; {more}" if more else ""
            self._say(f"waiting for {self._what} since {waited:.0f} s, at most {self.seconds:.0f} s{after}")
        return waited > self.seconds
