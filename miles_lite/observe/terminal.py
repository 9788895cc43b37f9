"""One readable line per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from rich.console import Console

from miles_lite.process.json_types import JsonMapping
from miles_lite.report import metric_names as names
from miles_lite.report.record import Record


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{value:.1f}s"


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", names.REWARD, "{:.3f}".format),
    ("±", names.REWARD_SPREAD, "{:.2f}".format),
    ("zero-std", names.ZERO_STD, _percent),
    ("len", names.RESPONSE_LEN, "{:.0f}".format),
    ("cut", names.TRUNCATED, _percent),
    ("failed", names.FAILED, _percent),
    ("stale", names.STALENESS, "{:.1f}".format),
    ("gap", names.LOGPROB_GAP, "{:.1e}".format),
    ("rollout", names.ROLLOUT_TIME, _seconds),
    ("train", names.TRAIN_TIME, _seconds),
    ("sync", names.UPDATE_WEIGHTS_TIME, _seconds),
    ("step", names.STEP_TIME, _seconds),
    ("tok/s", names.TOKENS_PER_SECOND, "{:.0f}".format),
    ("engines", names.ENGINES_BUSY, _percent),
    ("agents", names.ROLLOUT_BUSY, _percent),
    ("trainer", names.TRAIN_WAIT, lambda waited: _percent(1 - waited)),
)
"""Title, metric, format. A metric that the step did not log leaves its column out. The last three are shares: of looks
at engines that had requests, and of the step in which some agent ran, and something was trained."""


class Printer(Console):
    """For who reads lines, of which none is broken or coloured on its own account. A reader that leaves raises
    BrokenPipeError, as with `print`."""

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


LARGE_GAP = 0.1
"""Nats between trainer and engine, on average, that rounding does not explain, also of bfloat16."""


RECENT = 5
"""Steps whose mean time says how long the rest will take."""


def seconds(value: float) -> str:
    """`1:02:03`, without hours where there are none."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def event_line(event: JsonMapping) -> str:
    """`10:02:03 save step 4: checkpoints`: what happened, at which hour."""
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    about = [str(event["kind"]), *([event["what"]] if event["what"] else [])]
    about += [] if event["step"] is None else [f"step {event['step'] + 1}"]
    return f"{at} {' '.join(about)}: {event['said']}"


def latest_line(record: Record) -> str:
    """The step line of the last step that a record has; empty before the first."""
    times = record.by_step(names.STEP_TIME)
    if not times:
        return ""
    step, total = max(times), record.options.get("num_rollout")
    known = total if isinstance(total, int) else None
    return step_line(step + 1, total=known, metrics=record.curves.at(step), recent=list(times.values())[-RECENT:])


def step_line(step: int, *, total: int | None, metrics: Mapping[str, float], recent: Sequence[float] = ()) -> str:
    """`step  3/60  reward 0.412  zero-std 25% ...` from everything that step `step` (counted from 1) logged, and the
    time left if the others take as long as the `recent` ones."""
    shown = [f"{title} {form(metrics[name])}" for title, name, form in COLUMNS if name in metrics]
    if total is None:
        return "  ".join([f"step {step}", *shown])
    if recent and step < total:
        shown.append(f"left {seconds((total - step) * fmean(recent))}")
    return "  ".join([f"step {step:>{len(str(total))}}/{total}", *shown])


def failures_line(metrics: Mapping[str, float]) -> str:
    """`tool 3, timeout 1`: how many rollouts of a step failed where; empty when none did."""
    prefix = names.failed("")
    found = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix) and value}
    return ", ".join(f"{name} {value:.0f}" for name, value in sorted(found.items()))


def eval_line(step: int, *, total: int, metrics: Mapping[str, float], datasets: Iterable[str]) -> str:
    """`eval  3/60  held_out 0.412`: the mean reward of each of `datasets`, `step` training steps in."""
    shown = [f"{name} {metrics[names.heldout(name)]:.3f}" for name in datasets if names.heldout(name) in metrics]
    return "  ".join([f"eval {step:>{len(str(total))}}/{total}", *shown])


def gap_line(metrics: Mapping[str, float]) -> str | None:
    """What is to be said of a training step on whose tokens trainer and engines should have agreed, and did not."""
    gap = metrics.get(names.NUMERICS_GAP, 0.0)
    if gap < LARGE_GAP:
        return None
    return (
        f"warning: of the same ids and weights, trainer and engines say logprobs that differ by {gap:.2f} nats on "
        "average: they do not compute the same model. See 'Tokens differ' in docs/debug.md"
    )
