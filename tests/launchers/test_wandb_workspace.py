"""The saved layout of a wandb workspace: it shows metrics that there are, and wandb's own package takes it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.wandb_workspace import PANELS, TABLE
from miles_lite.observe import wandb_sink
from tests.metric_names import undocumented

SCRIPT = Path(__file__).parents[2] / "launchers" / "wandb_workspace.py"
DRAWN = [(axis, name) for panels in PANELS.values() for axis, names in panels.values() for name in names]
PATTERNS = {"^eval/[^/-]+$": "eval/heldout", "^rollout/failed/count_.*": "rollout/failed/count_tool"}
PATTERNS |= {"^alarm/.*": "alarm/gap"}


def test_it_shows_metrics_that_are_logged_over_the_axis_that_they_are_on() -> None:
    assert undocumented({name for _, name in DRAWN if not name.startswith("^")}) == set()
    for axis, name in DRAWN:
        family = f"{name.removeprefix('^').partition('/')[0]}/*"
        assert family in wandb_sink.AXES[axis], name
        assert not name.startswith("^") or re.search(name, PATTERNS[name])
    assert TABLE == wandb_sink.TABLE


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_wandbs_package_takes_it() -> None:
    pytest.importorskip("wandb_workspaces")
    told = json.loads(run("--json").stdout)
    sections = told["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [*list(PANELS)[:2], "Samples", *list(PANELS)[2:]]
    shown = [panel["config"].get("metrics", []) for section in sections for panel in section["panels"]]
    assert {name for metrics in shown for name in metrics} == {name for _, name in DRAWN if not name.startswith("^")}


def test_what_names_no_project_is_refused() -> None:
    for given in ((), ("mine",), ("mine/",)):
        refused = run(*given)
        assert refused.returncode == 2
        assert "ENTITY/PROJECT" in refused.stderr
