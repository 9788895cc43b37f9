"""A run's page: one HTML file, alarms first, that needs nothing but itself.

Invariant: what a record holds stands in the page as text, never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import jinja2

from miles_lite.report import metric_names as names
from miles_lite.report import rollout_table
from miles_lite.report.alarms import Alarm, alarms
from miles_lite.report.beside import side_by_side
from miles_lite.report.gap_histogram import gap_histogram
from miles_lite.report.group_tally import group_table
from miles_lite.report.pictures import Picture, pictures
from miles_lite.report.record import Record
from miles_lite.report.rollout_table import Row
from miles_lite.report.transcript import PLACES, VERSIONS, Transcript, transcripts
from miles_lite.report.visible import moment, visible

ENDED = {"interrupted": "interrupted by a person"}
NO_SUMMARY = "no summary: it runs, or was stopped"


@dataclass(frozen=True)
class Boundary:
    """What broke at one boundary: how many rollouts, and some of them."""

    where: str
    count: int
    share: float
    commonest: Sequence[tuple[str, int]]
    examples: Sequence[Row]


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it."""

    record: Record
    alarms: Sequence[Alarm]
    facts: Sequence[tuple[str, str]]
    outcomes: Sequence[tuple[str, int]]
    failures: Sequence[Boundary]
    groups: tuple[Sequence[str], Sequence[Sequence[str]]]
    pictures: Sequence[Picture]
    transcripts: Sequence[Transcript]


def render(records: Sequence[Record]) -> str:
    """The page of one run, or of several side by side with the options in which they differ."""
    runs, named = [run_view(record) for record in records], _names(records)
    alarmed = [{"alarms": "\n".join(alarm.title for alarm in run.alarms) or "none"} for run in runs]
    beside = side_by_side(records, named, [one | dict(run.facts) for one, run in zip(alarmed, runs, strict=True)])
    return environment().get_template("page.html").render(runs=runs, beside=beside, names=named)


def run_view(record: Record, *, whole: bool = True) -> RunView:
    """Everything of one run; where its record is of the last steps and not `whole`, no trajectories and no counts of
    all rollouts."""
    return RunView(
        record,
        alarms(record),
        [*_facts(record), *(_counts(record) if whole else ()), *_places(record)],
        record.tally.outcomes.most_common(),
        _failures(record),
        group_table(record.tally.groups),
        [*pictures(record), *(gap_histogram(record.folder) if whole else ())],
        list(transcripts(record)) if whole else [],
    )


def _is_html(value: object) -> bool:
    return hasattr(value, "__html__")


@cache
def environment() -> jinja2.Environment:
    """Of this room's templates: what is put into one is text there, and visible, unless it says otherwise."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=lambda value: (
            value if isinstance(value, int | float) or hasattr(value, "__html__") else visible(value)
        ),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"clock": lambda seconds: moment(seconds)[:19]}
    made.filters["format_value"] = lambda value, name: rollout_table.format_value(name, value)
    made.globals |= {"versions": VERSIONS, "places": PLACES, "coloured": tuple(PLACES)}
    return made


def standalone_svg(svg: str) -> str:
    """A picture as a file of its own, with the colours of the page."""
    tag, opened, rest = svg.partition(">")
    return f"{tag}{opened}<style>{environment().get_template('colours.html').render()}</style>{rest}"


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


def _counts(record: Record) -> Iterable[tuple[str, str]]:
    tally = record.tally
    yield "rollouts", f"{tally.rollouts:,}"
    if tally.rollouts:
        yield "failed", f"{tally.failed:,} ({100 * tally.failed / tally.rollouts:.1f} %)"
        yield "trained tokens", f"{tally.trained_tokens:,}"


def _places(record: Record) -> Iterable[tuple[str, str]]:
    yield "model", str(record.options.get("hf_checkpoint", "-"))
    yield "folder", str(record.folder)


def _failures(record: Record) -> list[Boundary]:
    whole = record.tally.rollouts
    return [
        Boundary(where, broken.count, broken.count / whole, broken.texts.most_common(5), [*broken.last][::-1])
        for where, broken in record.tally.boundaries
    ]
