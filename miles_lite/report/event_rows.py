"""What happened in a run, one JSON object a line: `events.jsonl` in the run folder.

Invariant: a row has every column; its words are bounded, and what happens in every step has one row a step at most, so
that a run of 10,000 steps has megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from miles_lite.errors import user_error
from miles_lite.process.json_types import JsonMapping
from miles_lite.report import json_lines
from miles_lite.report.visible import LATEST

FILE = "events.jsonl"
MOST_SAID = 2000
"""Characters of a row's words."""

COLUMNS: Mapping[str, tuple[str, str]] = {
    "time": ("double", "seconds since the epoch"),
    "kind": ("string", "what happened, in the table below"),
    "step": ("int64", "index of the training rollout (`rollout/step`) that it belongs to; null outside of one"),
    "what": ("string", "whom it is about: the alarm's rule, the weight version (`v3`); null otherwise"),
    "seconds": ("double", "how long it took; null where nothing did"),
    "said": ("string", "in words"),
}
"""Of each column its type, and what it says."""


class Kind(StrEnum):
    """What happened; KINDS says what each is."""

    START = "start"
    PAGE = "page"
    ENGINES = "engines"
    STANDS = "stands"
    WEIGHTS = "weights"
    EVALUATION = "evaluation"
    FAILURES = "failures"
    SAVE = "save"
    SERVERS = "servers"
    ALARM = "alarm"
    CALM = "calm"
    RESTART = "restart"
    END = "end"


KINDS: Mapping[Kind, str] = {
    Kind.START: "an attempt at the run begins: where",
    Kind.PAGE: "the run is on a page elsewhere: its address; `what`: `wandb`, or `Ray's actors`",
    Kind.ENGINES: "engines, router and sessions serve: their addresses, and the seconds until then",
    Kind.STANDS: "everything has started; the first step",
    Kind.WEIGHTS: "every engine serves a new weight version: the seconds, pause included",
    Kind.EVALUATION: "held-out prompts were run: their mean rewards",
    Kind.FAILURES: "rollouts of a step failed: how many at which [boundary](training.md#failures)",
    Kind.SAVE: "a checkpoint is begun: the seconds that the step waited for it",
    Kind.SERVERS: "an engine, the router, a session server or an agent worker was lost or replaced, or asks for help",
    Kind.ALARM: "a rule sees what it is there for: evidence, and what to do",
    Kind.CALM: "it has not seen it for five steps",
    Kind.RESTART: "an attempt was lost: why; the run goes on",
    Kind.END: "the run has ended: well, interrupted, or why",
}


def row(
    kind: Kind, said: str, *, at: float, step: int | None, what: str | None, seconds: float | None
) -> dict[str, object]:
    """One row of every column, `at` in seconds since the epoch."""
    return {
        "time": round(at, 3),
        "kind": str(kind),
        "step": step,
        "what": what,
        "seconds": None if seconds is None else round(seconds, 3),
        "said": said[:MOST_SAID],
    }


def read(run_dir: Path) -> list[JsonMapping]:
    """The rows, in the order written. Raises UserError for what is no file."""
    with user_error(f"{run_dir / FILE} cannot be read", IsADirectoryError, PermissionError):
        return [whole(found) for found in json_lines.read(run_dir / FILE)]


def active_alarms(events: Iterable[JsonMapping]) -> dict[str, str]:
    """By rule, what alarms say that no event has ended."""
    stands: dict[str, str] = {}
    for event in events:
        if event["kind"] == Kind.ALARM:
            stands[str(event["what"])] = str(event["said"])
        if event["kind"] == Kind.CALM:
            stands.pop(str(event["what"]), None)
    return stands


def whole(found: JsonMapping) -> JsonMapping:
    """A line of the file with every column: null where it lacks one, and 0 for a time that is none."""
    at = found.get("time")
    timed = isinstance(at, int | float) and abs(at) < LATEST
    words = {name: str(found.get(name) or "") for name in ("kind", "said")}
    return dict.fromkeys(COLUMNS) | dict(found) | words | {"time": at if timed else 0.0}
