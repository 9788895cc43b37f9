"""How far a run is: bars on a terminal, sparse plain lines in a log file.

Invariant: where the stream is not a terminal no line is ever overwritten, and at most one progress line is written
per `EVERY` seconds.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

EVERY = 30.0
"""Seconds between plain progress lines."""


class Progress:
    """Shows the step of a run and, within it, the groups and rollouts done. A context manager."""

    def __init__(self, *, steps: int, done: int = 0, stream: TextIO | None = None, every: float = EVERY) -> None:
        """`steps`: how many the run has; `done`: how many are behind it when it starts (a resumed run)."""
        self._stream = stream or sys.stderr
        self._every = every
        self._steps, self._done = steps, done
        self._phase, self._groups, self._rollouts = "", (0, 0), (0, 0)
        self._began = self._spoke = time.monotonic()
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        if self._stream.isatty():
            self._bars = RichProgress(
                TextColumn("{task.description:>8}"),
                BarColumn(bar_width=40),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            for name, total in (("rollouts", 0), ("groups", 0), ("steps", steps)):
                self._tasks[name] = self._bars.add_task(name, total=total, note="")

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, phase: str, *, groups: int = 0, rollouts: int = 0) -> None:
        """A phase of the current step starts (rollout, train, eval ...), of so many groups and rollouts."""
        self._phase, self._began = phase, time.monotonic()
        self._groups, self._rollouts = (0, groups), (0, rollouts)
        if self._bars is not None:
            self._bars.update(self._tasks["steps"], completed=self._done, note=phase)
            self._bars.reset(self._tasks["groups"], total=groups, visible=groups > 0)
            self._bars.reset(self._tasks["rollouts"], total=rollouts, visible=rollouts > 0)

    def update(self, *, groups: int, rollouts: int) -> None:
        """So many groups and rollouts of this phase are done."""
        self._groups, self._rollouts = (groups, self._groups[1]), (rollouts, self._rollouts[1])
        if self._bars is not None:
            self._bars.update(self._tasks["groups"], completed=groups)
            self._bars.update(self._tasks["rollouts"], completed=rollouts)
        elif time.monotonic() - self._spoke >= self._every:
            self.print_line(str(self))

    def step(self, line: str) -> None:
        """The current step is done; `line` is what is to be said about it."""
        self._done += 1
        self.print_line(line)
        if self._bars is not None:
            self._bars.update(self._tasks["steps"], completed=self._done, note="")

    def print_line(self, line: str) -> None:
        """Print a line that stays, above the bars."""
        self._spoke = time.monotonic()
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def __str__(self) -> str:
        counts = "/".join(map(str, self._groups)), "/".join(map(str, self._rollouts))
        seconds = time.monotonic() - self._began
        return (
            f"step {min(self._done + 1, self._steps)}/{self._steps}: {self._phase}, "
            f"{counts[0]} groups, {counts[1]} rollouts, {seconds:.0f} s"
        )
