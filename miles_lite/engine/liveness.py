"""Does a server still work? Its own `/health` says 200 for ever once it has started.

`/health_generate` answers when a token comes out: of the requests in flight, else of one that it makes itself. So it is
the progress of requests. A server that is computing without an answer, as in a long prefill, is given more time; one
that neither answers nor computes hangs.

Invariant: a server that uses the processor is never called hung before `patience` seconds without progress.
"""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miles_lite.process.probe import refusal

BUSY_SHARE = 0.05
"""Of one processor's time: less than this, and no process ready to run, means that nothing is computed."""
PROBE = "/health_generate"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Activity:
    """What the processes below a server did so far. `ready`: one of them is running or wants to."""

    seconds: float
    ready: bool


def activity(pid: int) -> Activity:
    """Of all descendants of process `pid`: schedulers and detokenizers, not the HTTP server itself."""
    seconds, ready = 0.0, False
    for child in _descendants(pid):
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        seconds += (int(fields[11]) + int(fields[12])) / TICKS
        ready = ready or fields[0] == "R"
    return Activity(seconds, ready)


def _descendants(pid: int) -> Iterator[int]:
    for children in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError):  # one thread has ended: the others' are still there
            for child in Path(children).read_text().split():
                yield int(child)
                yield from _descendants(int(child))


class Liveness:
    """Judges one server, probe by probe."""

    def __init__(self, pid: int | None, url: str, *, timeout: float, patience: float) -> None:
        """`pid` of the server, None when it runs elsewhere: then nobody sees whether it computes. `timeout`: seconds
        one probe waits for a token; `patience`: seconds without any that are too many."""
        self._pid = pid
        self._url = url
        self._timeout = timeout
        self._patience = patience
        self._progress = time.monotonic()

    def rest(self) -> None:
        """Time that passed until now does not count: the server was told to be still."""
        self._progress = time.monotonic()

    async def probe(self) -> str | None:
        """None while the server works, else what is wrong. Takes at most `timeout` seconds."""
        before, began = self._activity(), time.monotonic()
        said = await refusal(f"{self._url}{PROBE}", seconds=self._timeout)
        if said is None:
            self.rest()
            return None
        after, now = self._activity(), time.monotonic()
        share = (after.seconds - before.seconds) / max(now - began, 0.01)
        silent = now - self._progress
        if silent >= self._patience:
            return f"no token for {silent:.0f} s: {PROBE} {said}"
        if share >= BUSY_SHARE or before.ready or after.ready:
            return None
        return f"{PROBE} {said}, and nothing is computed: it hangs"

    def _activity(self) -> Activity:
        return Activity(0.0, ready=True) if self._pid is None else activity(self._pid)
