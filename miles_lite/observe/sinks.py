"""Where metrics go: a JSONL file always, Ray's gauges, wandb and tensorboard when asked.

Invariant: after `open_sinks` returned, no sink stops a run. A full disk or a lost connection costs that sink's rows,
is said once, and the total is said at `close`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import ray

from miles_lite.config.tracking import Logging
from miles_lite.observe.gauges import Gauges
from miles_lite.report.history import Curves, read_history
from miles_lite.report.json_lines import JsonLines
from miles_lite.report.record import METRICS

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """One destination. May raise; `Sinks` deals with it."""

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None: ...

    def close(self) -> None: ...


class RichSink(Sink, Protocol):
    """One that can tell more than numbers, likewise. `page`: where people see it; None where nobody does."""

    page: str | None

    def alert(self, title: str, text: str) -> None: ...

    def step_ended(self, step: int) -> None: ...

    def failed(self) -> None: ...


class JsonlSink:
    """One JSON object per line: `{step_key: step, "time": unix seconds, **metrics}`; NaN and infinity become null."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        self._lines.write([{step_key: step, "time": round(time.time(), 3), **metrics}])

    def close(self) -> None:
        self._lines.close()


class Sinks:
    """Fans metrics out to every sink. `log` and `close` never raise on behalf of a sink."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        curves: Sequence[Sink] = (),
        tellers: Sequence[RichSink] = (),
        *,
        logged: Mapping[str, int] | None = None,
    ) -> None:
        """`curves` and `tellers` are sinks in which a value stands for ever: what a run does once more is not logged
        there. `logged`: of each metric the last step that is there already."""
        self._sinks, self._curves, self._tellers = tuple(sinks), (*curves, *tellers), tuple(tellers)
        self._lost: Counter[str] = Counter()
        self._last: dict[str, int] = dict(logged or {})
        self._behind: dict[str, int] = dict(self._last)

    @property
    def page(self) -> str | None:
        """Where people see a sink that has a page."""
        return next((teller.page for teller in self._tellers if teller.page is not None), None)

    def again(self) -> None:
        """The run goes back to an earlier step."""
        self._behind = dict(self._last)

    def log(self, metrics: Mapping[str, float], *, step: int, step_key: str) -> None:
        """Write `metrics` at `step` of the axis `step_key` (rollout/step, train/step or eval/step)."""
        row = {name: float(value) for name, value in metrics.items()}
        fresh = {name: value for name, value in row.items() if step > self._behind.get(name, -1)}
        self._last.update(dict.fromkeys(fresh, step))
        what = f"could not log {step_key} {step} and will go on without it"
        for sink in self._sinks:
            self._call(sink, what, partial(sink.log, row, step=step, step_key=step_key))
        for sink in self._curves:
            self._call(sink, what, partial(sink.log, fresh, step=step, step_key=step_key))

    def alert(self, title: str, text: str) -> None:
        """What a person should hear who is elsewhere."""
        for teller in self._tellers:
            self._call(teller, f"could not say '{title}'", partial(teller.alert, title, text))

    def step_ended(self, step: int) -> None:
        """All of a step was logged."""
        for teller in self._tellers:
            self._call(teller, f"could not show rollouts of step {step}", partial(teller.step_ended, step))

    def _call(self, sink: Sink, what: str, tell: Callable[[], None]) -> None:
        name = type(sink).__name__
        try:
            tell()
        except Exception as error:  # noqa: BLE001  whatever a backend raises, the step goes on
            self._lost[name] += 1
            if self._lost[name] == 1:
                logger.warning("%s %s: %s", name, what, error)

    def close(self, *, failed: bool = False) -> None:
        """Finish every sink, each within a bound of its own, and say what was lost. `failed`: the run ends by an
        error."""
        for teller in self._tellers if failed else ():
            teller.failed()
        for sink in (*self._sinks, *self._curves):
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001  the other sinks still have to be closed
                logger.warning("%s did not close cleanly: %s", type(sink).__name__, error)
        for name, rows in self._lost.items():
            logger.warning("%s lost %d rows in all", name, rows)


def open_sinks(options: Logging, *, config: Mapping[str, object], run_dir: Path, resumed: bool = False) -> Sinks:
    """Open run_dir/metrics.jsonl, Ray's gauges where Ray runs, and what `options` asks for; a `resumed` run goes on in
    what is there.

    Raises UserError when one of them cannot be started.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    logged = Curves.of_rows(read_history(run_dir / METRICS)).last_steps() if resumed else None
    curves: list[Sink] = []
    tellers: list[RichSink] = []
    sinks: list[Sink] = [JsonlSink(run_dir / METRICS)]
    if ray.is_initialized():
        sinks.append(Gauges(run_dir.name))
    if options.use_wandb and options.wandb_mode != "disabled":
        from miles_lite.observe.wandb_sink import WandbSink

        tellers.append(WandbSink(options, config=config, run_dir=run_dir, resumed=resumed))
    if options.use_tensorboard:
        from miles_lite.observe.tensorboard_sink import TensorboardSink

        curves.append(TensorboardSink(run_dir / "tensorboard"))
    return Sinks(sinks, curves, tellers, logged=logged)
