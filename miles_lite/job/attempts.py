"""A run that goes on by itself when it loses what it cannot replace: from its last checkpoint, in this process.

Invariant: what an attempt started has ended before the next one begins, and at most --max-restarts follow one another
without a new checkpoint. Only what a run has once stood on is given another attempt: what never started is mended by
its user.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from miles_lite.config.options import Config
from miles_lite.errors import PASSING, RunLostError, UserError, plain
from miles_lite.job.claim import claimed
from miles_lite.job.events import Events
from miles_lite.job.lifetime import Course, Lifetime
from miles_lite.process import tracing
from miles_lite.process.post_mortem import how_to_go_on
from miles_lite.process.stopping import HASTE_SECONDS, Interrupts
from miles_lite.report.event_rows import Kind
from miles_lite.report.json_lines import append
from miles_lite.train.iterations import LATEST

log = logging.getLogger(__name__)

RESTARTS = "restarts.jsonl"
START_PAUSE = 2.0
"""Seconds, and more each time."""
T = TypeVar("T")


class Attempts:
    """One run's."""

    def __init__(self, config: Config, interrupts: Interrupts) -> None:
        self._config = config
        self._before = self._checkpoint = _written(config.checkpoint.save)
        self._in_a_row = 0
        self.course = Course(interrupts, Events(config.run_dir))

    def until_done(self, attempt: Callable[[Config, Lifetime], T]) -> T:
        """What `attempt` returns, which is given a config that goes on where the last one had to leave off. Raises what
        it raises where no other is worth it."""
        config = self._config
        while True:
            self.course.reached.of = None
            self.course.events.record(Kind.START, f"on {socket.gethostname()}, process {os.getpid()}")
            try:
                with Lifetime(self._config, self.course) as life:
                    return attempt(config, life)
            except Exception as error:  # noqa: BLE001 - what no attempt mends is raised again
                self._begin_again(error)
            config = self._resumed()

    def _begin_again(self, error: Exception) -> None:
        """Count and tell another attempt. Raises the error where there is to be none."""
        course, most = self.course, self._config.scheduling.max_restarts
        checkpoint = _written(self._config.checkpoint.save)
        if checkpoint != self._checkpoint:
            self._checkpoint, self._in_a_row = checkpoint, 0
        if not self._worth_it(error) or self._in_a_row >= most:
            if isinstance(error, RunLostError):
                raise self._with_advice(error) from error
            raise error
        self._in_a_row += 1
        if course.reached.of is None:
            self._pause(START_PAUSE * self._in_a_row)
        course.restarts += 1
        course.lost_at = course.lost_at or time.time()
        if course.sinks is not None:
            course.sinks.again()
        why, lost = str(plain(error)), course.reached.step
        log.warning("%s\n  %s is lost. Restart %d of %d", why, lost, self._in_a_row, most)
        row = {"time": time.time(), "restart": course.restarts, "lost": lost, "why": why, "log": _log_of(error)}
        course.events.record(Kind.RESTART, f"{why}; {lost} is lost", step=course.reached.next)
        append(self._config.run_dir / RESTARTS, [row])

    def _pause(self, seconds: float) -> None:
        """What kept an attempt from starting, such as a port or a slot that is not free yet, may go."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.course.interrupts.check()
            time.sleep(0.1)

    def _worth_it(self, error: Exception) -> bool:
        """Whether another attempt may end otherwise, and repeats nothing that somebody could have saved."""
        reached = self.course.reached
        if reached.of is None:
            passing = self.course.restarts > 0 and isinstance(plain(error), UserError | RunLostError)
        else:
            passing = isinstance(plain(error), PASSING)
        return passing and (self._config.checkpoint.save is not None or reached.trained is None)

    def _with_advice(self, error: RunLostError) -> RunLostError:
        """With what is lost and how to go on."""
        reached = self.course.reached
        used = f" --max-restarts {self._in_a_row} are used up." if self._in_a_row else ""
        mend = how_to_go_on(["miles-lite", *sys.argv[1:]], save=self._config.checkpoint.save, saved=reached.saved)
        return RunLostError(f"{error}.\n  {reached.step} is lost.{used} {mend}")

    def _resumed(self) -> Config:
        """From the newest checkpoint of this run; as it began, where there is none."""
        given = self._config.checkpoint
        if self._checkpoint == self._before:
            self.course.reached.trained = self.course.reached.saved = None
            return self._config
        found = dataclasses.replace(given, load=given.save, load_optim=given.save_optim, load_rng=True, finetune=False)
        return dataclasses.replace(self._config, checkpoint=found)


@contextlib.contextmanager
def attempts(config: Config) -> Iterator[Attempts]:
    """A run's. Raises UserError for a folder that cannot be made, or that another run is writing into."""
    save = {} if config.checkpoint.save is None else {"--save": Path(config.checkpoint.save)}
    with claimed({"--run-dir": config.run_dir, **save}), Interrupts(deaf=HASTE_SECONDS) as interrupts:
        tries = Attempts(config, interrupts)
        spans = tracing.sent_to(config.tracing.otlp_endpoint, "driver")
        with tries.course.standing, tries.course.unhurried, tries.course.events, spans:
            yield tries


def _log_of(error: Exception) -> str:
    """The end of what the process wrote that was lost, as far as it is known."""
    return error.log if isinstance(error, RunLostError) else ""


def _written(save: str | None) -> float | None:
    """When the last checkpoint there became complete."""
    marker = Path(save or "") / LATEST
    return marker.stat().st_mtime if save is not None and marker.is_file() else None
