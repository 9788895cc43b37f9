"""Why rollouts failed, one JSON line each: counts say that something is wrong, these lines say what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from miles_lite.errors import FAILURES, Where
from miles_lite.process import json_lines
from miles_lite.sample import Failure, Group

LONGEST = 2000
"""Characters of an error that are kept."""


def failure_of(error: BaseException, *, at: Where) -> Failure:
    """What `error` makes of a rollout: where it, or an error behind it, says that it broke (`where`), else `at`."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - what users' code raises may not even say what it is
        said = "its message cannot be printed"
    behind: BaseException | None = error
    while behind is not None:
        where = getattr(behind, "where", None)
        if isinstance(where, str) and where in FAILURES:
            return Failure(Where(where), f"{type(error).__name__}: {said}"[:LONGEST])
        behind = behind.__cause__
    return Failure(at, f"{type(error).__name__}: {said}"[:LONGEST])


def note_quarantined(path: Path, rollout_id: int, groups: Sequence[Group]) -> list[str]:
    """Append the prompts of `groups`, which will not be dealt again, to `path`; returns what to say of each."""
    said = []
    for group in groups:
        row, failures = group.prompt.get("row"), [one.failure for one in group.rollouts if one.failure]
        last = failures[-1] if failures else None
        why = "" if last is None else f"{last.where}: {last.why}"
        json_lines.append(path, {"rollout/step": rollout_id, "prompt_row": row, "why": why})
        said.append(f"the prompt of line {row} failed too often: it is not dealt again ({why})")
    return said


def note_failures(path: Path, rollout_id: int, groups: Iterable[Group]) -> None:
    """Append where and why every failed rollout of a step broke to `path`."""
    rows = [
        {
            "rollout/step": rollout_id,
            "rollout": rollout.index,
            "prompt_row": group.prompt.get("row"),
            "status": rollout.status,
            "where": rollout.failure.where,
            "why": rollout.failure.why,
        }
        for group in groups
        for rollout in group.rollouts
        if rollout.failure
    ]
    if rows:
        json_lines.append(path, *rows)
