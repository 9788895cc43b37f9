"""Sandboxes for many episodes at once: some ready before they are asked for, few started at a time, all ended.

Invariant: at most `at_once` are lent and `spare` ready; each is lent once and ends with its lease.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from miles_lite.errors import RolloutError
from miles_lite.sandboxes.sandbox import Provider, Sandbox, broken

LOG = logging.getLogger(__name__)
BACKOFF = 0.5
"""Seconds before a start's second attempt; twice that before the next."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`at_once` sandboxes lent, `starting` at a time, `spare` ready of what was asked for last, `attempts` for each
    start, `seconds` to wait for one."""

    at_once: int = 64
    starting: int = 4
    spare: int = 0
    attempts: int = 3
    seconds: float = 1800.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A sandbox, how long its start took, and how many attempts had failed."""

    sandbox: Sandbox
    seconds: float
    failures: int

    @property
    def report(self) -> dict[str, float]:
        """What an agent function may return of it (docs/metrics.md, agent/)."""
        return {"sandbox_start_time": self.seconds, "sandbox_failures": self.failures}


Key = tuple[str | None, str | None]


class Pool:
    """Lends sandboxes of one provider to threads."""

    def __init__(self, provider: Provider, limits: Limits | None = None) -> None:
        self._provider, self._limits = provider, limits or Limits()
        self._room, self._lent, self._closed = threading.Condition(), 0, False
        self._starters = ThreadPoolExecutor(self._limits.starting, thread_name_prefix="sandbox")
        self._ready: deque[tuple[Key, Future[Lease]]] = deque()
        self._lock = threading.Lock()
        self._names = (f"{secrets.token_hex(4)}-{number}" for number in itertools.count())
        if left := provider.reap():
            LOG.info("%d sandboxes of processes that are gone were ended", left)

    @contextlib.contextmanager
    def open(self, image: str | None = None, *, workdir: str | None = None) -> Iterator[Lease]:
        """A sandbox of its own for the block. Raises RolloutError where none can be had, SetupError."""
        with self._room:
            free = self._room.wait_for(lambda: self._lent < self._limits.at_once or self._closed, self._limits.seconds)
            if not free:
                at_once = self._limits.at_once
                raise broken(f"no sandbox was free for {self._limits.seconds:g} s: {at_once} are lent at once")
            if self._closed:
                raise broken("no sandbox is lent any more: this process ends")
            self._lent += 1
        try:
            lease = self._started(self._next((image, workdir)))
            try:
                yield lease
            finally:
                lease.sandbox.close()
        finally:
            with self._room:
                self._lent -= 1
                self._room.notify()

    def close(self) -> None:
        """Lend no more, and end what was started and not lent. Idempotent."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._starters.shutdown(cancel_futures=True)
        with self._lock:
            while self._ready:
                _end(self._ready.popleft()[1])

    def _next(self, key: Key) -> Future[Lease]:
        """The oldest that is ready of what is asked for, and others begun in its place."""
        with self._lock:
            found = next((each for each in self._ready if each[0] == key), None)
            if found is not None:
                self._ready.remove(found)
            taken = found[1] if found is not None else self._begin(key)
            for _ in range(self._limits.spare - sum(each[0] == key for each in self._ready)):
                if len(self._ready) == self._limits.spare:
                    self._starters.submit(_end, self._ready.popleft()[1])
                self._ready.append((key, self._begin(key)))
            return taken

    def _started(self, future: Future[Lease]) -> Lease:
        try:
            return future.result(self._limits.seconds)
        except TimeoutError as error:
            future.add_done_callback(_end)
            raise broken(f"no sandbox had started after {self._limits.seconds:g} s") from error

    def _begin(self, key: Key) -> Future[Lease]:
        return self._starters.submit(self._start, next(self._names), *key)

    def _start(self, name: str, image: str | None, workdir: str | None) -> Lease:
        began = time.monotonic()
        for failures in itertools.count():
            try:
                sandbox = self._provider.start(name, image, workdir)
            except RolloutError as error:
                LOG.warning("a sandbox did not start, attempt %d: %s", failures + 1, error)
                if failures + 1 >= self._limits.attempts:
                    raise
                time.sleep(BACKOFF * 2**failures)
            else:
                return Lease(sandbox, time.monotonic() - began, failures)
        raise AssertionError


def _end(started: Future[Lease]) -> None:
    with contextlib.suppress(Exception):  # one that never started
        if not started.cancel():
            started.result().sandbox.close()
