"""Why rollouts failed, one JSON line each: counts say that something is wrong, these lines say what."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from miles_lite.sample import Group


def note_failures(path: Path, rollout_id: int, groups: Iterable[Group]) -> None:
    """Append the error and its detail of every failed or aborted rollout of a step to `path`."""
    lines = [
        json.dumps(
            {
                "rollout/step": rollout_id,
                "rollout": rollout.index,
                "prompt_row": group.prompt.get("row"),
                "status": rollout.status,
                "error": rollout.error,
                "detail": rollout.metadata.get("error_detail"),
            }
        )
        for group in groups
        for rollout in group.rollouts
        if rollout.error
    ]
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
