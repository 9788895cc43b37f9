"""The runs of a folder, each by its name, and what one asks of them.

Invariant: what is asked of a run's last steps reads those alone: the end of its metrics, the tables of rollouts from
the newest on until there is enough. What a file said is kept of the runs that were asked for last. How a run stands is
what its own events say.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pyarrow import ArrowException

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.report import event_rows, json_lines, rollout_table
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import WINDOW
from miles_lite.report.event_rows import Kind
from miles_lite.report.history import Curves, Headlines
from miles_lite.report.index import Filter, Index
from miles_lite.report.parting import Parting, damaged, parting
from miles_lite.report.record import METRICS, Record, read_record, state
from miles_lite.report.rollout_table import Row
from miles_lite.report.visible import visible
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory

LAST_BYTES = 1 << 18
"""Of metrics.jsonl, for how a run stands."""
MOST_NAMED = 10
"""Runs that are named where one is not there."""
MOST_KNOWN = 4
"""Runs of which what was read is kept."""


class _Cached:
    """What was read of a run."""

    def __init__(self, path: Path) -> None:
        self._path, self._headlines, self.index = path, Headlines(path / METRICS), Index(path)
        self._read: tuple[str, Record] | None = None

    def record(self) -> tuple[str, Record]:
        """As it is now, and its state."""
        now, before = state(self._path), self._read
        if before is None or before[0] != now:
            before = self._read = now, read_record(self._path, steps=WINDOW, curves=self._headlines.now())
        return before


class Runs:
    """The run folders in `folder`, or the one that it is."""

    def __init__(self, folder: Path, *, running: Callable[[Path], bool]) -> None:
        """`running` says whether a run has a folder now."""
        self._folder, self._running = folder.resolve(), running
        self._known = lru_cache(MOST_KNOWN)(_Cached)
        self._statuses: dict[Path, tuple[str, JsonObject]] = {}

    def paths(self) -> dict[str, Path]:
        """By name, as it is spelled in an address, the one that was written to last first."""
        folders = [self._folder, *self._folder.iterdir()] if self._folder.is_dir() else []
        found = [(touched, path) for path in folders if (touched := _touched(path)) is not None]
        return {visible(path.name): path for _, path in sorted(found, reverse=True)}

    def path(self, name: str) -> Path:
        """Raises UserError for a run that is not there."""
        likely = self._folder / name
        if (
            name != ".."
            and likely.parent == self._folder
            and visible(likely.name) == name
            and _touched(likely) is not None
        ):
            return likely
        paths = self.paths()
        if name not in paths:
            there = ", ".join(list(paths)[:MOST_NAMED]) + (", ..." if len(paths) > MOST_NAMED else "")
            raise UserError(f"no run {name} in {self._folder}; there are {there or 'none'}")
        return paths[name]

    def all(self) -> list[JsonObject]:
        """How each stands, the one that was written to last first; one that is removed meanwhile is left out."""
        return [told for name, path in self.paths().items() if (told := self._status_or_error(name, path)) is not None]

    def state(self) -> str:
        """Another one whenever how a run of them stands may have changed."""
        there = sorted((name, state(path), self._runs(path)) for name, path in self.paths().items())
        return hashlib.sha256(repr(there).encode()).hexdigest()[:16]

    def status(self, name: str) -> JsonObject:
        """How a run stands: its state, last step and reward, the alarms that have not ended, and where else it is
        shown."""
        return self._status(name, self.path(name))

    def _status_or_error(self, name: str, path: Path) -> JsonObject | None:
        """The same of one of many, which a damaged one does not hide; None where it is there no longer."""
        try:
            return self._status(name, path)
        except FileNotFoundError:
            return None
        except UserError as error:
            nothing = dict.fromkeys(("step", "reward", "touched"))
            return {"name": name, "state": str(error), **nothing, "alarms": [], "pages": {}}

    def _status(self, name: str, path: Path) -> JsonObject:
        now, before = state(path), self._statuses.get(path)
        if before is None or before[0] != now:
            before = self._statuses[path] = now, _read_status(path)
        told = {"name": name, **before[1], "touched": _touched(path)}
        return told | ({"state": "running"} if self._runs(path) else {})

    def _runs(self, path: Path) -> bool:
        """Not one that is removed meanwhile."""
        with suppress(FileNotFoundError):
            return self._running(path)
        return False

    def record(self, name: str) -> tuple[str, Record]:
        """A run with the metrics that a page shows, and the rollouts of its last WINDOW steps; and what changes when it
        does."""
        return self._known(self.path(name)).record()

    def rollouts(self, name: str, wanted: Filter) -> list[Row]:
        """Rows of SHOWN."""
        return self._known(self.path(name)).index.find(wanted)

    def rollout(self, name: str, step: int, rollout: int) -> Row:
        """One row, whole. Raises UserError for one that is not there."""
        folder = self.path(name)
        with user_error(f"{rollout_table.step_path(folder, step)} cannot be read", ArrowException, OSError):
            found = rollout_table.read_step(folder, step) if rollout_table.has(folder, step) else []
        row = next((row for row in found if row["rollout"] == rollout), None)
        if row is None:
            raise UserError(f"run {name} has no rollout {rollout} in step {step}")
        return row

    def trajectory(self, name: str, step: int, rollout: int) -> Trajectory | None:
        """One, whole; None where it was not kept. Raises UserError for a damaged one."""
        path = rollout_table.trajectory_path(self.path(name), step, rollout)
        return atraj.read(path) if path.is_file() else None

    def parting(self, name: str, step: int, one: int, other: int) -> Parting:
        """Of two rollouts of a step. Raises UserError where one was not kept."""
        found = [self.trajectory(name, step, each) for each in (one, other)]
        if found[0] is None or found[1] is None:
            gone = one if found[0] is None else other
            raise UserError(f"the trajectory of rollout {gone} of step {step} was not kept (--keep-trajectories)")
        with damaged(f"the trajectory of rollout {one} or {other}"):
            return parting(found[0], found[1])


def _touched(path: Path) -> float | None:
    """When a run wrote there last; None where there is none."""
    for name in (METRICS, "config.json"):
        with suppress(OSError):
            found = os.stat(path / name)
            if stat.S_ISREG(found.st_mode):
                return found.st_mtime
    return None


def _read_status(path: Path) -> JsonObject:
    """How a run stands that does not run."""
    events = event_rows.read(path)
    last = events[-1] if events else {}
    metrics = path / METRICS
    curves = Curves.of_rows(json_lines.read(metrics, last=LAST_BYTES) if metrics.is_file() else [])
    rewards = curves.by_step(names.REWARD)
    return {
        "state": f"ended: {last['said']}" if last.get("kind") == Kind.END else "ended without a word",
        "step": max(rewards, default=None),
        "reward": rewards[max(rewards)] if rewards else None,
        "alarms": [*event_rows.active_alarms(events).values()],
        "pages": _pages(events),
    }


def _pages(events: list[JsonMapping]) -> dict[str, str]:
    """Where else it is shown, by whose page that is, as it was told last; addresses of the web alone."""
    told = {str(event["what"]): str(event["said"]) for event in events if event["kind"] == Kind.PAGE}
    return {whose: address for whose, address in told.items() if re.match("https?://", address)}
