"""An attempt at a run, from its first part to its end.

Invariant: whatever ends it (its last step, an error, Ctrl-C, SIGTERM), nothing it started keeps running, and what it
last saved is complete.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from miles_lite.config.options import Config
from miles_lite.config.places import Topology
from miles_lite.config.rules import refuse_broken
from miles_lite.engine.forked_engines import forking_engines
from miles_lite.errors import RunLostError, UnavailableError, plain
from miles_lite.job.events import Events
from miles_lite.job.forked_workers import forking_workers
from miles_lite.job.watch import Watch, death_in
from miles_lite.observe.sinks import Sinks
from miles_lite.process.post_mortem import DiedError, describe_death, last_lines, out_of_memory_kills
from miles_lite.process.stacks import stacks_folder, write_stacks
from miles_lite.process.stopping import DEAF_SECONDS, END_SECONDS, INTERRUPTED, Interrupts, ends_within
from miles_lite.report.event_rows import Kind
from miles_lite.stack.cluster import actors_page, connect, disconnect, joined
from miles_lite.stack.placement import Layout, place

log = logging.getLogger(__name__)


@dataclass
class Reached:
    """How far a run has come: the last rollouts that were trained (only rolled out, where nothing trains) and saved,
    how many there are to be, and the last weights that were evaluated."""

    trained: int | None = None
    saved: int | None = None
    of: int | None = None
    evaluated: int | None = None

    @property
    def next(self) -> int:
        """The step that is under way, from 0."""
        return 0 if self.trained is None else self.trained + 1

    @property
    def step(self) -> str:
        """The same in words."""
        return f"Step {self.next + 1} of {self.of or '?'}"


@dataclass
class Course:
    """What a run keeps from one attempt to the next. `standing` ends with it; `unhurried` is what takes as long as it
    takes at its end, unless a person wants it to end."""

    interrupts: Interrupts
    events: Events
    reached: Reached = field(default_factory=Reached)
    restarts: int = 0
    began: float = field(default_factory=time.time)
    sinks: Sinks | None = None
    standing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    unhurried: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    lost_at: float | None = None
    """When the attempt before was lost, while the next one starts."""


class Lifetime:
    """What an attempt has started, in `parts`, each ended before those that were there before it. A context manager,
    which raises RunLostError where a death ended it."""

    def __init__(self, config: Config, course: Course) -> None:
        self._config, self.course = config, course
        self._killed_before = out_of_memory_kills()
        self._ray_logs: Path | None = None
        hint = f"see {config.run_dir}/logs and Ray's dashboard"
        self.watch = Watch(course.interrupts, hint=hint, notify=lambda line: self.notify(line))
        self.parts = contextlib.ExitStack()
        self.notify: Callable[[str], None] = log.warning
        """Tells a person one line."""

    @property
    def reached(self) -> Reached:
        return self.course.reached

    def connect(self, topology: Topology, *, train: bool) -> Layout:
        """Join Ray and take the slots, with those of trainers or without. Raises UserError."""
        self.course.interrupts.check()
        self.course.interrupts.deaf = DEAF_SECONDS
        self.parts.callback(disconnect)
        self._ray_logs = connect(self._config.cluster.ray_address)
        if (actors := actors_page()) is not None:
            self.course.events.record(Kind.PAGE, actors, what="Ray's actors")
        layout = place(topology, train=train)
        self.parts.callback(layout.remove)
        refuse_broken(self._config.on_device(layout.device) if train else [])
        logs = self._config.run_dir / "logs"
        self.course.standing.enter_context(forking_engines(layout.device, topology, logs))
        if train and not joined(self._config.cluster.ray_address):
            self.course.standing.enter_context(forking_workers(layout.device, logs))
        self._config.write()
        return layout

    def mark_ready(self, *, first: int, of: int) -> None:
        """All of it has started, to do the steps from `first` up to `of`."""
        reached, lost_at = self.reached, self.course.lost_at
        reached.of = of
        if first > 0:
            reached.trained = reached.saved = first - 1
        if lost_at is not None:
            self.notify(f"going on with step {first + 1} of {of} after {time.time() - lost_at:.0f} s")
            self.course.lost_at = None
        self.course.events.record(Kind.STANDS, f"step {first + 1} of {of} is the next", step=first)

    def record_server_line(self, line: str) -> None:
        """What a person must hear of the run's servers."""
        self.course.events.record(Kind.SERVERS, line)
        self.notify(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        died = death_in(error) or self.watch.death_behind(error)
        lost = None if died is None else self._lost(died)
        interrupted = isinstance(error, KeyboardInterrupt)
        logs = self._config.run_dir / "logs"
        if error is not None and isinstance(plain(error), UnavailableError):
            self.watch.write_stacks(stacks_folder(logs))

        def look() -> None:
            write_stacks(stacks_folder(logs), {}, own="driver")

        with ends_within(END_SECONDS, INTERRUPTED if interrupted else 1, look):
            self.parts.__exit__(kind, error, trace)
            if interrupted:
                self.course.unhurried.close()
        if lost is not None:
            raise lost from error

    def _lost(self, died: DiedError) -> RunLostError:
        why = describe_death(died.error, logs=self._ray_logs, killed_before=self._killed_before)
        return RunLostError(f"{died.name} has died: {why}", log=last_lines(died.error, self._ray_logs))
