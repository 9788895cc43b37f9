"""What a run folder tells: metrics, rollouts, configuration, summary.

Invariant: a folder of a run that was killed reads to its last whole line and file; what is not there is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping
from miles_lite.report import event_rows, fleet_rows, rollout_table
from miles_lite.report.history import Curves, held_out, read_history
from miles_lite.report.rollout_tally import COLUMNS, Tally

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
LAST_STEPS, LAST_ROLLOUTS = 5, 256
"""Whose rows are looked at one by one: all of so many steps, and at least so many."""
LAST_FLEET = 1 << 20
"""Bytes of what is told of engines that a look at a run's last steps reads."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run as its folder has it.

    curves    of metrics.jsonl; rollouts: rows of `rollout_table`, of the last steps; tally: of all that were asked for
    events    of `event_rows`; fleet: of `fleet_rows`
    options   flags by name, as the run took them; summary: of summary.json, empty for a run that has not ended
    """

    folder: Path
    curves: Curves
    rollouts: list[rollout_table.Row]
    options: Mapping[str, object]
    summary: Mapping[str, Any]
    tally: Tally = field(default_factory=Tally)
    events: Sequence[JsonMapping] = ()
    fleet: Sequence[JsonMapping] = ()

    def by_step(self, name: str) -> dict[int, float]:
        """The values of a metric, by the step of the axis that it is on."""
        return self.curves.by_step(name)

    def values(self, name: str) -> list[float]:
        """The same, in the order of steps."""
        return list(self.by_step(name).values())

    def of(self, curves: Curves) -> Record:
        """The same run with other metrics."""
        return replace(self, curves=curves)

    @property
    def held_out(self) -> list[str]:
        """Names of the held-out datasets."""
        return held_out(self.curves.names)


def read_record(folder: Path, *, steps: int | None = None, curves: Curves | None = None) -> Record:
    """With a tally of the rollouts of the last `steps` only, if so many are asked for, and what is told last of its
    engines; with `curves` for those of its metrics, if they are there already. Raises UserError for a folder that is no
    run's, and for a file in it that is damaged."""
    if not (folder / "config.json").is_file() and not (folder / METRICS).is_file():
        raise UserError(f"{folder} is no run folder: it has neither config.json nor metrics.jsonl (--run-dir of a run)")
    with user_error(f"{folder}/{rollout_table.FOLDER} cannot be read", OSError):
        rollouts, tally = _rollouts(folder, steps)
    groups = _json(folder / "config.json")
    with user_error(f"{folder}/{fleet_rows.FILE} cannot be read", OSError):
        fleet = fleet_rows.read(folder, last=None if steps is None else LAST_FLEET if steps else 0)
    return Record(
        folder=folder.resolve(),
        curves=Curves.of_rows(read_history(folder / METRICS)) if curves is None else curves,
        rollouts=rollouts,
        tally=tally,
        options={name: value for group in groups.values() if isinstance(group, dict) for name, value in group.items()},
        summary=_json(folder / SUMMARY),
        events=event_rows.read(folder),
        fleet=fleet,
    )


def _rollouts(folder: Path, steps: int | None) -> tuple[list[rollout_table.Row], Tally]:
    """The rows of the last steps, and a tally of the last `steps`. Of a file that is only counted, what is counted is
    read, and each is read once."""
    paths, last, rows = [*rollout_table.files(folder, newest_first=True)], list[pa.Table](), 0
    for path in paths if steps != 0 else ():
        if len(last) >= LAST_STEPS and rows >= LAST_ROLLOUTS:
            break
        last.append(rollout_table.readable(path))
        rows += last[-1].num_rows
    tally = Tally()
    counted = paths if steps is None else paths[:steps]
    for path in reversed(counted[len(last) :]):
        tally.add(rollout_table.readable(path, COLUMNS))
    for table in reversed(last[: len(counted)]):
        tally.add(table.select(COLUMNS))
    return [row for table in reversed(last) for row in table.to_pylist()], tally


def state(folder: Path) -> str:
    """Another one whenever the run has written something that a record is read from."""
    parts = (METRICS, event_rows.FILE, fleet_rows.FILE, SUMMARY, "config.json", rollout_table.FOLDER)
    found = [path.stat() for path in (folder / part for part in parts) if path.exists()]
    return f"{max((one.st_mtime_ns for one in found), default=0)}-{sum(one.st_size for one in found)}"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with user_error(f"{path} cannot be read", json.JSONDecodeError, UnicodeDecodeError, OSError):
        found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
