"""The alarms of a run that goes on: its rules over what has come so far, after each step.

Invariant: it reads one step's table of rollouts a step and the last looks at the engines, holds the last steps' alone,
and raises nothing whatever is missing. An alarm stands until its rule has seen nothing for WINDOW steps: one which
comes and goes is told once, also where the run was lost meanwhile and goes on.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from pyarrow import ArrowException

from miles_lite.process.json_types import JsonMapping
from miles_lite.report import event_rows, fleet_rows, rollout_table
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import WINDOW, Alarm, alarms
from miles_lite.report.history import Curves, read_history
from miles_lite.report.record import LAST_FLEET, LAST_ROLLOUTS, LAST_STEPS, METRICS, Record


@dataclass(frozen=True)
class Change:
    """What a step has changed: alarms that are new, rules whose alarm has ended; and of each rule that ever saw
    something `alarm/<rule>`, 1 while its alarm stands."""

    raised: Sequence[Alarm]
    ended: Sequence[str]
    metrics: Mapping[str, float]


class LiveAlarms:
    """Of one run, whose folder has what came before."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._curves = run_dir, Curves.of_rows(read_history(run_dir / METRICS))
        self._rollouts: deque[list[rollout_table.Row]] = deque()
        self._seen = dict.fromkeys(event_rows.active_alarms(event_rows.read(run_dir)), 0)
        """By rule, for how many steps it has seen nothing."""

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """What was logged at a step."""
        self._curves.add(metrics, step)

    def after(self, step: int) -> Change:
        """The step has ended."""
        with contextlib.suppress(OSError, ArrowException):
            self._rollouts.append(rollout_table.read_step(self._run_dir, step))
        while len(self._rollouts) > LAST_STEPS and sum(map(len, islice(self._rollouts, 1, None))) >= LAST_ROLLOUTS:
            self._rollouts.popleft()
        rows = list(chain.from_iterable(self._rollouts))
        fleet: Sequence[JsonMapping] = ()
        with contextlib.suppress(OSError):
            fleet = fleet_rows.read(self._run_dir, last=LAST_FLEET)
        record = Record(folder=self._run_dir, curves=self._curves, rollouts=rows, options={}, summary={}, fleet=fleet)
        sees = {alarm.rule: alarm for alarm in alarms(record)}
        stood = {rule for rule, quiet in self._seen.items() if quiet < WINDOW}
        self._seen = {rule: quiet + 1 for rule, quiet in self._seen.items()} | dict.fromkeys(sees, 0)
        stands = {rule for rule, quiet in self._seen.items() if quiet < WINDOW}
        return Change(
            [alarm for rule, alarm in sees.items() if rule not in stood],
            sorted(stood - stands),
            {f"{names.ALARMS}{rule}": float(rule in stands) for rule in self._seen},
        )
