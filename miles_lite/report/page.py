"""A run's page: one HTML file, alarms first, that needs nothing but itself.

Invariant: what a record holds stands in the page as text, never as markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, pstdev

import jinja2

from miles_lite.report import charts
from miles_lite.report import metric_names as names
from miles_lite.report.alarms import Alarm, alarms
from miles_lite.report.fleet_lines import fleet_lines
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import TRAINED, Row
from miles_lite.report.transcript import VERSIONS, Transcript, told
from miles_lite.report.visible import visible

ENDED = {"interrupted": "interrupted by a person"}
NO_SUMMARY = "no summary: it runs, or was stopped"
MOST_FAILURES = 50
"""Failed rollouts that are listed for each boundary; all are counted."""
MOST_STEPS = 200
"""Steps that tables and bars show: the last."""


@dataclass(frozen=True)
class Picture:
    """A chart, in words for who does not see it, and its numbers: a row for each step."""

    title: str
    says: str
    svg: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Boundary:
    """What broke at one boundary: how many rollouts, and some of them."""

    where: str
    count: int
    share: float
    commonest: Sequence[tuple[str, int]]
    examples: Sequence[Row]


@dataclass(frozen=True)
class Told:
    """One run as the page shows it."""

    record: Record
    alarms: Sequence[Alarm]
    facts: Sequence[tuple[str, str]]
    outcomes: Sequence[tuple[str, int]]
    failures: Sequence[Boundary]
    pictures: Sequence[Picture]
    transcripts: Sequence[Transcript]


def render(records: Sequence[Record]) -> str:
    """The page of one run, or of several side by side with the options in which they differ."""
    runs = [tell(record) for record in records]
    return (
        environment()
        .get_template("page.html")
        .render(runs=runs, differences=differences(records), names=_names(records), versions=VERSIONS)
    )


def tell(record: Record, *, transcripts: bool = True) -> Told:
    """Everything of one run, trajectories only where they are asked for."""
    outcomes = Counter(row["outcome"] for row in record.rollouts)
    return Told(
        record,
        alarms(record),
        list(_facts(record)),
        outcomes.most_common(),
        _failures(record),
        list(_pictures(record)),
        list(told(record)) if transcripts else [],
    )


def differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Options that are not the same in all runs, and what they are in each."""
    every = sorted({name for record in records for name in record.options})
    values = {name: [str(record.options.get(name, "-")) for record in records] for name in every}
    return [(name, said) for name, said in values.items() if len(set(said)) > 1]


@cache
def environment() -> jinja2.Environment:
    """Of this room's templates: what is put into one is text there, unless it says otherwise."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    made.filters["visible"] = visible
    return made


def _names(records: Sequence[Record]) -> list[str]:
    """Folders by their last names, or in full where these are the same."""
    last = [record.folder.name for record in records]
    return last if len(set(last)) == len(last) else [str(record.folder) for record in records]


def _facts(record: Record) -> Iterable[tuple[str, str]]:
    rewards = record.values(names.REWARD)
    steps = record.by_step(names.STEP_TIME)
    yield "state", ENDED.get(str(record.summary.get("ended")), "ended well") if record.summary else NO_SUMMARY
    if rewards:
        yield "reward", f"{fmean(rewards[:5]):.3g} → {fmean(rewards[-5:]):.3g}"
    for name in record.held_out:
        if held := record.values(names.heldout(name)):
            yield f"held-out {name}", f"{held[0]:.3g} → {held[-1]:.3g}"
    yield "steps", f"{len(rewards)}" + (f" in {sum(steps.values()):,.0f} s" if steps else "")
    yield "rollouts", f"{len(record.rollouts):,}"
    if record.rollouts:
        failed = sum(row["where"] is not None for row in record.rollouts)
        yield "failed", f"{failed:,} ({100 * failed / len(record.rollouts):.1f} %)"
        yield "trained tokens", f"{sum(row['trained_tokens'] for row in record.rollouts):,}"
    yield "model", str(record.options.get("hf_checkpoint", "-"))
    yield "folder", str(record.folder)


def _failures(record: Record) -> list[Boundary]:
    failed = sorted((row for row in record.rollouts if row["where"] is not None), key=itemgetter("where"))
    found = []
    for where, same in groupby(failed, key=itemgetter("where")):
        rows = list(same)
        texts = Counter(row["why"] for row in rows).most_common(5)
        found.append(Boundary(where, len(rows), len(rows) / len(record.rollouts), texts, rows[-MOST_FAILURES:][::-1]))
    return sorted(found, key=lambda boundary: -boundary.count)


def _pictures(record: Record) -> Iterable[Picture]:
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
        yield Picture(title, says, charts.curves(lines, along=along, **bounds), [along, *lines], rows)


def _spread(record: Record) -> dict[str, charts.Points]:
    by_step: dict[int, list[float]] = {}
    for row in record.rollouts:
        if row["reward"] is not None:
            by_step.setdefault(row["step"], []).append(row["reward"])
    mean = {step: fmean(rewards) for step, rewards in by_step.items()}
    return {"mean": mean, "deviation": {step: pstdev(rewards) for step, rewards in by_step.items()}} if mean else {}


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
        yield Picture("Step timeline", says, charts.stacked(parts, steps), ["step", *parts], rows)


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
    yield Picture("Rollouts of the last step", says, charts.gantt(rows), [*columns, "seconds"], table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
