"""The pictures of a run: which there are, in words and numbers too, each drawn when somebody looks at it.

Invariant: to know which pictures a record has draws none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from miles_lite.report import charts
from miles_lite.report import metric_names as names
from miles_lite.report.fleet_lines import fleet_lines
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import TRAINED

MOST_STEPS = 200
"""Steps that tables and bars show: the last."""


@dataclass(frozen=True)
class Picture:
    """A chart, in words for who does not see it, and its numbers: a row for each step. `draw` gives it as SVG."""

    title: str
    says: str
    draw: Callable[[], str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def pictures(record: Record) -> Iterable[Picture]:
    """Those that the record has something for."""
    rewards = {"train": record.by_step(names.REWARD)}
    rewards |= {f"held-out {name}": record.by_step(names.heldout(name)) for name in record.held_out}
    yield from _curve("Reward", "mean reward of a step's rollouts", rewards, low=0.0, high=1.0)
    if spread := _spread(record):
        yield from _curve("Spread of rewards", "mean and standard deviation over the rollouts of a step", spread)
    zero = {"no gradient": record.by_step(names.ZERO_STD), "cut": record.by_step(names.TRUNCATED)}
    zero["failed"] = record.by_step(names.FAILED)
    yield from _curve(
        "Shares", "groups whose rewards are all equal; rollouts cut; rollouts failed", zero, low=0, high=1
    )
    yield from _curve(
        "Length", "trained tokens a rollout", {"tokens": record.by_step(names.RESPONSE_LEN)}, low=0, high=1
    )
    gaps = {"all": record.by_step(names.LOGPROB_GAP)}
    gaps |= {cause: record.by_step(name) for cause, name in names.GAPS.items()}
    yield from _curve(
        "Trainer against engines", "mean difference of logprobs, nats a token, by cause", gaps, low=0, high=0
    )
    trained = {"gradient norm": record.by_step(names.GRAD_NORM), "entropy": record.by_step(names.ENTROPY)}
    yield from _curve("Training", "norm of the gradient before clipping; entropy, nats a token", trained, low=0, high=0)
    yield from _timeline(record)
    yield from _gantt(record)
    for title, column, says in FLEET:
        fleet = fleet_lines(record.fleet, column)
        yield from _curve(title, f"{says}, by engine", fleet.lines, along=fleet.unit, low=0, high=0)


FLEET = (
    ("KV cache", "kv_use", "share of the KV cache that requests hold"),
    ("Requests", "running", "requests that run"),
    ("Queues", "queued", "requests that wait in engines"),
    ("Weights", "version", "weight version that is served"),
)
"""Of engines over time: a picture's title, its column, and what that says."""


def _curve(
    title: str, says: str, lines: Mapping[str, charts.Points], *, along: str = "step", **bounds: float
) -> Iterable[Picture]:
    lines = {name: points for name, points in lines.items() if points}
    if lines:
        steps = sorted({step for points in lines.values() for step in points})[-MOST_STEPS:]
        rows = [[str(step), *(_number(points.get(step)) for points in lines.values())] for step in steps]
        yield Picture(title, says, partial(charts.curves, lines, along=along, **bounds), [along, *lines], rows)


def _spread(record: Record) -> dict[str, charts.Points]:
    steps = sorted(record.tally.spread.items())
    named = enumerate(("mean", "deviation") if steps else ())
    return {name: {step: both[at] for step, both in steps} for at, name in named}


def _timeline(record: Record) -> Iterable[Picture]:
    whole = record.by_step(names.STEP_TIME)
    parts: dict[str, charts.Points] = {
        "rollout": record.by_step(names.ROLLOUT_TIME),
        "train": record.by_step(names.TRAIN_TIME),
        "sync": record.by_step(names.UPDATE_WEIGHTS_TIME),
    }
    steps = list(whole)[-MOST_STEPS:]
    if steps:
        told = {step: sum(points.get(step, 0.0) for points in parts.values()) for step in steps}
        parts["other"] = {step: max(0.0, whole[step] - told[step]) for step in steps}
        rows = [[str(step), *(_number(points.get(step)) for points in parts.values())] for step in steps]
        says = "seconds of each step: rolling out, training, updating weights, and the rest; they may overlap"
        yield Picture("Step timeline", says, partial(charts.stacked, parts, steps), ["step", *parts], rows)


def _gantt(record: Record) -> Iterable[Picture]:
    ended = [row for row in record.rollouts if row["outcome"] == TRAINED and row["finished_at"] > row["started_at"]]
    if not ended:
        return
    step = max(row["step"] for row in ended)
    rows = [row for row in ended if row["step"] == step]
    columns = ("rollout", "queue", "model", "tool", "reward_time")
    table = [
        [_number(row[column]) for column in columns] + [_number(row["finished_at"] - row["started_at"])] for row in rows
    ]
    says = f"the rollouts of step {step}: seconds of the model, of tools, of judging"
    yield Picture("Rollouts of the last step", says, partial(charts.gantt, rows), [*columns, "seconds"], table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
