"""The pictures of a run: which there are, in words and numbers too, each drawn when somebody looks at it.

Invariant: to know which pictures a record has draws none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from miles_lite.report import charts
from miles_lite.report import metric_names as names
from miles_lite.report.event_rows import Kind
from miles_lite.report.fleet_lines import fleet_lines
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import TRAINED

MOST_STEPS = 200
"""Steps that tables and bars show: the last."""
OLDEST = 10
"""Weight versions that a histogram tells apart."""
BEFORE = 0.1
"""Of the time of a step's rollouts, in which a weight update before them is shown."""


@dataclass(frozen=True)
class Picture:
    """A chart, in words for who does not see it, and its numbers: a row for each step. `draw` gives it as SVG."""

    title: str
    caption: str
    draw: Callable[[], str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def pictures(record: Record) -> Iterable[Picture]:
    """Those that the record has something for."""
    yield from _rewards(record)
    zero = {"no gradient": record.by_step(names.ZERO_STD), "cut": record.by_step(names.TRUNCATED)}
    zero["failed"] = record.by_step(names.FAILED)
    yield from curve_picture(
        "Shares", "groups whose rewards are all equal; rollouts cut; rollouts failed", zero, low=0, high=1
    )
    yield from curve_picture(
        "Length", "trained tokens a rollout", {"tokens": record.by_step(names.RESPONSE_LEN)}, low=0, high=1
    )
    gaps = {"all": record.by_step(names.LOGPROB_GAP)}
    gaps |= {cause: record.by_step(name) for cause, name in names.GAPS.items()}
    yield from curve_picture(
        "Trainer against engines", "mean difference of logprobs, nats a token, by cause", gaps, low=0, high=0
    )
    trained = {"gradient norm": record.by_step(names.GRAD_NORM), "entropy": record.by_step(names.ENTROPY)}
    yield from curve_picture(
        "Training", "norm of the gradient before clipping; entropy, nats a token", trained, low=0, high=0
    )
    yield from _timeline(record)
    yield from _gantt(record)
    yield from _staleness(record)
    for title, column, says in FLEET:
        fleet = fleet_lines(record.fleet, column)
        yield from curve_picture(title, f"{says}, by engine", fleet.lines, along=fleet.unit, low=0, high=0)


FLEET = (
    ("KV cache", "kv_use", "share of the KV cache that requests hold"),
    ("Requests", "running", "requests that run"),
    ("Queues", "queued", "requests that wait in engines"),
    ("Weights", "version", "weight version that is served"),
)
"""Of engines over time: a picture's title, its column, and what that says."""


def curve_picture(
    title: str,
    says: str,
    lines: Mapping[str, charts.Points],
    *,
    along: str = "step",
    low: float | None = None,
    high: float | None = None,
) -> Iterable[Picture]:
    """A picture of those lines that have points, if any has."""
    lines = {name: points for name, points in lines.items() if points}
    if lines:
        steps = sorted({step for points in lines.values() for step in points})[-MOST_STEPS:]
        rows = [[str(step), *(_number(points.get(step)) for points in lines.values())] for step in steps]
        yield Picture(
            title, says, partial(charts.curves, lines, along=along, low=low, high=high), [along, *lines], rows
        )


def _rewards(record: Record) -> Iterable[Picture]:
    """With the spread as it was logged; of a run that did not, as the rollouts say that were counted."""
    counted = sorted(record.tally.spread.items())
    lines: dict[str, charts.Points] = {
        "train": record.by_step(names.REWARD) or {step: mean for step, (mean, _) in counted}
    }
    lines |= {f"held-out {name}": record.by_step(names.heldout(name)) for name in record.held_out}
    spread = record.by_step(names.REWARD_SPREAD)
    spread = spread or {step: deviation for step, (_, deviation) in counted}
    says = "mean reward of a step's rollouts, and the standard deviation over them"
    for made in curve_picture("Reward", says, lines | {DEVIATION: spread}, low=0.0, high=1.0):
        drawn = {name: points for name, points in lines.items() if points}
        yield replace(made, draw=partial(charts.curves, drawn, low=0.0, high=1.0, spread={"train": spread}))


DEVIATION = "deviation"


def histogram(title: str, says: str, counts: Mapping[str, int], *, along: str, of: str) -> Iterable[Picture]:
    """A picture of how many `of` are where, if any are."""
    if any(counts.values()):
        rows = [[place, f"{count:,}"] for place, count in counts.items()]
        yield Picture(title, says, partial(charts.bars, counts, along=along, of=of), [along, of], rows)


def _staleness(record: Record) -> Iterable[Picture]:
    ages = Counter[int]()
    for age, count in record.tally.ages.items():
        ages[min(max(age, 0), OLDEST)] += count
    counts = {str(age) if age < OLDEST else f"{age} or more": ages[age] for age in range(max(ages, default=-1) + 1)}
    says = "trained rollouts by how many weight versions old their oldest token was"
    yield from histogram("Staleness", says, counts, along="weight versions", of="rollouts")


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
        parts["idle"] = record.by_step(names.OVERHEAD_TIME)
        parts["other"] = {step: max(0.0, whole[step] - told[step] - parts["idle"].get(step, 0.0)) for step in steps}
        rows = [[str(step), *(_number(points.get(step)) for points in parts.values())] for step in steps]
        says = "seconds of each step: rolling out, training, updating weights, idle, and the rest; they may overlap"
        yield Picture("Step timeline", says, partial(charts.stacked, parts, steps), ["step", *parts], rows)


def _gantt(record: Record) -> Iterable[Picture]:
    ended = [row for row in record.rollouts if row["outcome"] == TRAINED and row["finished_at"] > row["started_at"]]
    if not ended:
        return
    step = max(row["step"] for row in ended)
    rows = [row for row in ended if row["step"] == step]
    columns = ("rollout", "queue", "model", "tool", "reward_time", "idle")
    updates = _updates(record, min(row["started_at"] for row in rows), max(row["finished_at"] for row in rows))
    table = [
        [_number(row[column]) for column in columns] + [_number(row["finished_at"] - row["started_at"])] for row in rows
    ]
    says = f"the rollouts of step {step}: seconds of the model, of tools, of judging, of waiting"
    says += "; new weights as lines" if updates else ""
    yield Picture("Rollouts of the last step", says, partial(charts.gantt, rows, updates), [*columns, "seconds"], table)


def _updates(record: Record, began: float, ended: float) -> list[float]:
    """When engines took new weights while rollouts ran, or shortly before the first of them."""
    told = (event["time"] for event in record.events if event["kind"] == Kind.WEIGHTS)
    return [at for at in told if began - BEFORE * (ended - began) <= at <= ended]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
