"""Why rollouts failed, one JSON line each: counts say that something is wrong, these lines say what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from miles_lite.errors import FAILURES, UserError, Where
from miles_lite.report.json_lines import append
from miles_lite.sample import Failure, Group, Rollout

FAILED, QUARANTINED = "failures.jsonl", "quarantined.jsonl"
"""Where they are, in the run folder."""
LONGEST = 2000
"""Characters of an error that are kept."""
LASTING = frozenset({Where.AGENT, Where.TIMEOUT, Where.SETUP})
"""Where a rollout breaks that is not run again: it would break there again, as far as anyone knows."""
NO_REWARD = "none_reward"


def broke(rollout: Rollout) -> tuple[str, str, bool]:
    """Where a rollout failed, "" where it did not; the words; and whether another attempt may end otherwise."""
    if rollout.failure is None:
        return "", "", False
    return str(rollout.failure.where), rollout.failure.why, rollout.failure.where not in LASTING


def lost(rollouts: Iterable[Rollout]) -> Counter[str]:
    """How many of them cannot be trained, by why."""
    return Counter(broke(rollout)[0] or NO_REWARD for rollout in rollouts if not rollout.trainable)


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


def refuse_setup(failure: Failure | None) -> None:
    """Raises UserError for one that every other rollout would meet, too."""
    if failure is not None and failure.where is Where.SETUP:
        raise UserError(f"a rollout cannot be run, and none can before that is mended: {failure.why}")


def note_quarantined(path: Path, rollout_id: int, groups: Sequence[Group]) -> list[str]:
    """Append the prompts of `groups`, which will not be dealt again, to `path`; returns what to say of each. Raises
    UserError when the disk is full."""
    rows = []
    for group in groups:
        last = next((one.failure for one in reversed(group.rollouts) if one.failure), None)
        rows.append({"rollout/step": rollout_id, "prompt_row": group.prompt.get("row"), "why": str(last or "")})
    if rows:
        append(path, rows)
    return [
        f"the prompt of line {row['prompt_row']} failed too often: it is not dealt again ({row['why']})" for row in rows
    ]


def note_failures(path: Path, step: int, row: object, rollouts: Iterable[Rollout]) -> None:
    """Append where and why each of `rollouts`, of the prompt of that row, broke to `path`, at once: whatever ends the
    run later, they are there. `step`: the one that is being collected. Raises UserError when the disk is full."""
    rows = [
        {
            "rollout/step": step,
            "rollout": rollout.index,
            "prompt_row": row,
            "status": rollout.status,
            "where": rollout.failure.where,
            "why": rollout.failure.why,
        }
        for rollout in rollouts
        if rollout.failure
    ]
    if rows:
        append(path, rows)
