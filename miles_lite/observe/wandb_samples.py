"""Rollouts of a step as rows of a wandb table: what became of each, and what was said in it.

Invariant: it is bounded, whatever was recorded, and reads the run folder alone.
"""

from __future__ import annotations

from pathlib import Path

from miles_lite.process.json_types import Json
from miles_lite.report import rollout_table
from miles_lite.report.rollout_table import trajectory_path
from miles_lite.report.visible import first, visible
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Trajectory

FACTS = (
    "step",
    "rollout",
    "group",
    "outcome",
    "where",
    "why",
    "reward",
    "zero_std",
    "turns",
    "tool_calls",
    "trained_tokens",
)
"""Columns of the record."""
COLUMNS = (*FACTS, "kept", "said")
MOST_ROWS, MOST_CHARACTERS = 24, 20_000
"""Of a table; of what was said in one rollout."""


def newest_step(run_dir: Path) -> int | None:
    """The last one of which trajectories were kept and whose rows are there; None before the first."""
    return next(iter(rollout_table.kept_trajectories(run_dir)), None)


def samples(run_dir: Path, step: int) -> list[list[Json]]:
    """Rows of COLUMNS: those of a step that were kept, what failed last. Raises UserError, OSError and
    pyarrow.ArrowException for what is damaged."""
    found: list[list[Json]] = []
    for row in sorted(rollout_table.read_step(run_dir, step), key=lambda row: row["where"] is not None):
        path = trajectory_path(run_dir, step, row["rollout"])
        if len(found) < MOST_ROWS and path.is_file():
            trajectory = atraj.read(path)
            kept = trajectory.data.get("metadata", {}).get("kept", ())
            found.append([*(_cell(row[name]) for name in FACTS), ", ".join(kept), _as_text(trajectory)])
    return found


def _cell(value: Json) -> Json:
    return visible(value) if isinstance(value, str) else value


def _as_text(trajectory: Trajectory) -> str:
    return first("\n\n".join(f"[{step.role}]\n{visible(step.content)}" for step in trajectory.steps), MOST_CHARACTERS)
