"""What a run says of itself: metrics to their sinks, a line and a bar to the terminal.

Invariant: from `open_log` on, sinks are closed when the run ends, however it does; all its attempts have the same.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from miles_lite.config.options import Config
from miles_lite.job.attempts import RESTARTS
from miles_lite.job.lifetime import Lifetime
from miles_lite.observe.free_room import free_gb
from miles_lite.observe.overhead import uncovered
from miles_lite.observe.progress import Progress
from miles_lite.observe.sinks import Sinks, open_sinks
from miles_lite.observe.terminal import RECENT, step_line
from miles_lite.report import event_rows, fleet_rows
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import WINDOW
from miles_lite.report.event_rows import Kind
from miles_lite.report.live import Change, LiveAlarms
from miles_lite.report.record import METRICS, SUMMARY
from miles_lite.report.rollout_table import FOLDER, TRAJECTORIES
from miles_lite.rollout.failures import FAILED, QUARANTINED

RECORD = (METRICS, event_rows.FILE, fleet_rows.FILE, FAILED, QUARANTINED, RESTARTS, FOLDER, TRAJECTORIES)
"""What a run adds to from step to step; a SUMMARY is what it ends with."""


def open_log(config: Config, life: Lifetime, *, resumed: bool) -> Sinks:
    """What another run left in the folder stays under another name; a run that goes on has not ended yet. Raises
    UserError."""
    course = life.course
    if course.sinks is not None:
        return course.sinks
    set_aside(config.run_dir, [SUMMARY] if resumed else [*RECORD, SUMMARY], before=f"before-{course.began:.0f}")
    course.events.write()
    sinks = open_sinks(config.logging, config=config.as_dict(), run_dir=config.run_dir, resumed=resumed)
    course.sinks = sinks
    if sinks.page is not None:
        course.events.record(Kind.PAGE, sinks.page, what="wandb")
    course.unhurried.push(lambda kind, error, trace: sinks.close(failed=isinstance(error, Exception)))
    return sinks


def set_aside(run_dir: Path, names: Iterable[str], *, before: str) -> None:
    """Rename these of a run folder, as far as they are there: `metrics.jsonl` to `metrics.BEFORE.jsonl`."""
    for path in (run_dir / name for name in names):
        if path.exists():
            path.rename(path.with_stem(f"{path.stem}.{before}"))


class Log:
    """Logs steps."""

    def __init__(self, life: Lifetime, sinks: Sinks, config: Config, *, steps: int, done: int) -> None:
        self._sinks, self._steps, self._course = sinks, steps, life.course
        self._written = [Path(folder) for folder in (config.run_dir, config.checkpoint.save) if folder is not None]
        self._busy: list[tuple[float, float]] = []
        self._agents: list[tuple[float, float]] = []
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._seen: dict[str, float] = {}
        self._alarms = LiveAlarms(config.run_dir)
        self.progress = life.parts.enter_context(Progress(steps=steps, done=done))
        life.notify = self.progress.print_line

    @contextlib.contextmanager
    def step(self, rollout_id: int) -> Iterator[None]:
        """One turn of the loop; logs how long it took and how much of that nothing useful ran."""
        began = time.time()
        self._busy.clear()
        self._agents.clear()
        self._seen.clear()
        yield
        ended = time.time()
        idle = uncovered(began, ended, self._busy)
        times = {names.STEP_TIME: ended - began, names.OVERHEAD_TIME: idle, names.RESTARTS: self._course.restarts}
        if (free := free_gb(self._written)) is not None:
            times[names.DISK_FREE] = free
        if self._agents:
            times[names.ROLLOUT_BUSY] = 1 - uncovered(began, ended, self._agents) / (ended - began)
        if (trained := self._seen.get(names.TRAIN_TIME)) is not None:
            waited = ended - began - trained
            times |= {"perf/train_wait_time": waited, names.TRAIN_WAIT: waited / (ended - began)}
        self.metrics(times, rollout_id, names.ROLLOUT_STEP)
        self._recent.append(ended - began)
        line = step_line(rollout_id + 1, total=self._steps, metrics=self._seen, recent=self._recent)
        self.progress.step(line)
        self._report_alarms(self._alarms.after(rollout_id), rollout_id)
        self._sinks.step_ended(rollout_id)

    def busy(self, *intervals: tuple[float, float], agents: bool = False) -> None:
        """Something useful ran in these: `agents`, or what else."""
        self._busy += intervals
        self._agents += intervals if agents else ()

    def metrics(self, metrics: Mapping[str, float], step: int, step_key: str) -> None:
        """Write `metrics` at `step` of the axis `step_key`."""
        self._seen |= metrics
        self._alarms.add(metrics, step)
        self._sinks.log(metrics, step=step, step_key=step_key)

    def event(self, kind: Kind, said: str, *, step: int, what: str | None = None, seconds: float | None = None) -> None:
        """It happened now, in that step."""
        self._course.events.record(kind, said, step=step, what=what, seconds=seconds)

    def _report_alarms(self, change: Change, step: int) -> None:
        """What rules see, to whoever looks."""
        for alarm in change.raised:
            self.progress.print_line(f"alarm: {alarm.title}: {alarm.evidence}. {alarm.advice}")
            self.event(Kind.ALARM, f"{alarm.title}: {alarm.evidence}. {alarm.advice}", step=step, what=alarm.rule)
            self._sinks.alert(alarm.title, f"{alarm.evidence}. {alarm.advice}")
        for rule in change.ended:
            self.event(Kind.CALM, f"not seen for {WINDOW} steps", step=step, what=rule)
        if change.metrics:
            self._sinks.log(change.metrics, step=step, step_key=names.ROLLOUT_STEP)
