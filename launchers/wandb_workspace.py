"""A wandb workspace laid out for runs of miles_lite: what one looks at first, in sections that follow docs/metrics.md.

pip install wandb-workspaces
python launchers/wandb_workspace.py ENTITY/PROJECT [--name NAME]      # saves it there, prints its address
python launchers/wandb_workspace.py --json                            # prints the layout, and asks nobody
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb_workspaces import workspaces

STEP, TRAINED, EVALUATED = "rollout/step", "train/step", "eval/step"
PANELS: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "Learning": {
        "Reward": (STEP, ("rollout/reward_unfiltered", "rollout/reward")),
        "Spread of rewards": (STEP, ("rollout/reward_unfiltered_std",)),
        "Groups without gradient": (STEP, ("rollout/zero_std_unfiltered_ratio", "rollout/zero_std_ratio")),
        "All wrong, all right": (
            STEP,
            ("rollout/zero_std/all_zero_percentage", "rollout/zero_std/all_one_percentage"),
        ),
        "Held out": (EVALUATED, ("^eval/[^/-]+$",)),
    },
    "Rollouts": {
        "Failed and cut": (STEP, ("rollout/failed_ratio", "rollout/aborted_ratio", "rollout/truncated_ratio")),
        "Failures by boundary": (STEP, ("^rollout/failed/count_.*",)),
        "Length": (STEP, ("rollout/response_len/mean", "rollout/response_len/median", "rollout/response_len/max")),
        "Turns and tool calls": (STEP, ("agent/turns_mean", "agent/tool_calls_mean")),
        "Where agents' time goes": (STEP, ("agent/model_query_time_sum_mean", "agent/env_execution_time_sum_mean")),
    },
    "Trainer": {
        "Loss": (TRAINED, ("train/loss", "train/pg_loss")),
        "Gradient norm": (TRAINED, ("train/grad_norm",)),
        "Entropy": (TRAINED, ("train/entropy_loss",)),
        "KL and clipping": (TRAINED, ("train/ppo_kl", "train/kl_loss", "train/pg_clipfrac")),
        "Learning rate": (TRAINED, ("train/lr",)),
    },
    "Trainer against engines": {
        "Gap of logprobs": (TRAINED, ("train/train_rollout_logprob_abs_diff",)),
        "By cause": (
            TRAINED,
            tuple(f"train/logprob_gap/{cause}" for cause in ("numerics", "staleness", "routes", "off_context")),
        ),
        "Staleness": (STEP, ("rollout/fully_async/avg_staleness", "rollout/fully_async/max_staleness")),
        "Weight versions": (STEP, ("rollout/weight_version/min", "rollout/weight_version/max")),
    },
    "Time": {
        "Step": (STEP, ("perf/step_time", "perf/rollout_time", "perf/train_time", "perf/update_weights_time")),
        "Nothing runs": (STEP, ("perf/overhead_time",)),
        "Busy shares": (STEP, ("perf/rollout_busy_ratio", "perf/wait_time_ratio")),
        "Tokens a second": (STEP, ("perf/rollout_tok_per_s", "perf/actor_train_tok_per_s")),
        "Restarts": (STEP, ("perf/restarts", "rollout/engine_restarts")),
    },
    "Alarms": {"Alarms that stand": (STEP, ("^alarm/.*",))},
}
"""By section and title: the axis, and the metrics; one that begins with ^ is a pattern of names."""
TABLE = "rollout/samples"
OPEN = ("Learning", "Rollouts", "Samples")


def workspace(entity: str, project: str, name: str) -> workspaces.Workspace:
    """Not saved."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports import v2 as reports

    def line(title: str, axis: str, metrics: tuple[str, ...]) -> reports.LinePlot:
        if metrics[0].startswith("^"):
            return reports.LinePlot(title=title, x=axis, metric_regex=metrics[0])
        return reports.LinePlot(title=title, x=axis, y=list(metrics))

    sections = [
        workspaces.Section(
            name=section, panels=[line(title, *drawn) for title, drawn in panels.items()], is_open=section in OPEN
        )
        for section, panels in PANELS.items()
    ]
    table = reports.WeavePanelSummaryTable(table_name=TABLE)
    sections.insert(2, workspaces.Section(name="Samples", panels=[table], is_open=True))
    return workspaces.Workspace(name=name, entity=entity, project=project, sections=sections)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", metavar="ENTITY/PROJECT")
    parser.add_argument("--name", default="miles_lite")
    parser.add_argument("--json", action="store_true", help="print the layout")
    given = parser.parse_args()
    entity, slash, project = (given.project or "").partition("/")
    if not given.json and not (entity and slash and project):
        parser.error("ENTITY/PROJECT, as in the project's address, or --json")
    try:
        made = workspace(entity or "entity", project or "miles_lite", given.name)
    except ImportError as error:
        print(f"wandb_workspace: it needs wandb-workspaces: pip install wandb-workspaces ({error})", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True)), indent=1))
        return 0
    print(made.save().url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
