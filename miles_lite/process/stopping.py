"""How a process is asked to end: Ctrl-C, or SIGTERM; and how it ends within a bound.

Invariant: no signal handler here raises. What a signal interrupts may be foreign code (Ray's, a module that is being
imported), which turns an exception that comes from nowhere into another one. So the wish is noted, and our own code
looks at it where it waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import asyncio

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
DEAF_SECONDS = 20.0
"""How long foreign code may keep us from looking."""
HASTE_SECONDS = 1.0
"""The same where nothing has been started that would have to be ended."""
END_SECONDS = 25.0
"""How long it may take to end all that was started, with bounds of its own for its parts."""


def stop_requested() -> asyncio.Event:
    """Set when SIGINT or SIGTERM arrives; from now on neither ends the process by itself. Needs a running loop."""
    import asyncio  # late: until the command line listens, Ctrl-C is a traceback, and this takes longer than the rest

    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


class Interrupts:
    """A context in which Ctrl-C and SIGTERM are noted, also where a shell started us with SIGINT ignored.

    `check` raises KeyboardInterrupt once one came, and so does the end of the context unless something else is raised.
    A process that looks neither way for `deaf` seconds after the first, or after one that ends what was postponed, ends
    at once, with INTERRUPTED.
    """

    def __init__(self, *, deaf: float = DEAF_SECONDS) -> None:
        self.deaf = deaf
        self._old: dict[int, Any] = {}
        self._bound = contextlib.ExitStack()
        self._noted: list[int] = []
        self._first_at = 0.0
        self._postponed = False

    @property
    def requested(self) -> bool:
        """Whether one came."""
        return bool(self._noted)

    def __enter__(self) -> Self:
        self._old = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def listen(self) -> None:
        """Be the one who hears of signals, whoever came between: Ray takes SIGTERM for itself when it connects."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise KeyboardInterrupt when it is time to end."""
        if self.requested:
            self._bound.close()
            raise KeyboardInterrupt

    def postponed(self, seconds: float) -> bool:
        """Whether what runs may come to its end first: it was asked for once, by a person, who can ask again, or less
        than `seconds` ago. A look, as `check` is one."""
        if len(self._noted) != 1:
            return False
        self._bound.close()
        self._postponed = self._noted == [signal.SIGINT] or time.monotonic() - self._first_at < seconds
        return self._postponed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bound.close()
        if self.requested:  # the process ends, and one more Ctrl-C changes nothing
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            if error is None:
                raise KeyboardInterrupt
        else:
            for number in SIGNALS:
                signal.signal(number, self._old[number])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._first_at = self._first_at or time.monotonic()
        if not self._noted or self._postponed:
            self._bound.enter_context(ends_within(self.deaf, INTERRUPTED))
        self._noted.append(signum)
        self._postponed = False


@contextlib.contextmanager
def ends_within(seconds: float, code: int, look: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A block that is over after `seconds`, or the process is: for what waits in foreign code, which no signal ends.

    Before the process ends so, `look` may leave what it was at. What we started ends with us: Ray's processes and
    engines' guards see to it themselves.
    """
    timer = threading.Timer(seconds, _end, (code, look))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(code: int, look: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n" if code == INTERRUPTED else b"error: not everything ended in time\n")
    with contextlib.suppress(OSError, RuntimeError):
        look()
    os._exit(code)
