"""Each of launchers/monitoring's alert rules fires on what it is there for, and none on a run that goes well."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from miles_lite.session.http.prometheus import SECONDS
from tests.launchers.test_monitoring import FOLDER, rules

MINUTES = 90
RUN, ROUTER = 'run="r"', 'run="r", part="router", instance="a:1"'
STEP = f"ray_miles_lite_rollout_step{{{RUN}}}"
ONE, OTHER = (f'router_worker_state{{state="ready", worker="{name}", {ROUTER}}}' for name in ("one", "other"))
Series = Mapping[str, str]
"""By name and labels the values of a minute each, as promtool writes them."""


def turns(seconds: float) -> Series:
    """A hundred turns a minute, 90 of them at once and the others in so long."""
    bounds = [*((f"{float(bound)}", bound) for bound in SECONDS), ("+Inf", float("inf"))]
    return {
        f'miles_lite_session_turn_seconds_bucket{{{RUN}, le="{name}"}}': f"0+{100 if seconds <= at else 90}x{MINUTES}"
        for name, at in bounds
    }


HEALTHY: Series = {
    STEP: f"0+1x{MINUTES}",
    f"ray_miles_lite_step_seconds{{{RUN}}}": f"50+0x{MINUTES}",
    f'ray_miles_lite_alarm{{{RUN}, rule="gap"}}': f"0+0x{MINUTES}",
    f"ray_miles_lite_failed_ratio{{{RUN}}}": f"0.02+0x{MINUTES}",
    f"ray_miles_lite_logprob_gap{{{RUN}}}": f"0.01+0x{MINUTES}",
    ONE: f"1+0x{MINUTES}",
    OTHER: f"1+0x{MINUTES}",
    f"router_queue_length{{{ROUTER}}}": "0 3 " * (MINUTES // 2),
    f'router_worker_failed_total{{worker="one", {ROUTER}}}': f"0+1x{MINUTES}",
    **turns(100),
    f'up{{job="miles_lite", {ROUTER}}}': f"1+0x{MINUTES}",
}
FAULTS: Mapping[str, tuple[Series, set[str]]] = {
    "RunAlarm": ({f'ray_miles_lite_alarm{{{RUN}, rule="gap"}}': f"0+0x60 1+0x{MINUTES}"}, set()),
    "RunStandsStill": ({STEP: f"0+1x20 20+0x{MINUTES}"}, set()),
    "RolloutsFail": ({f"ray_miles_lite_failed_ratio{{{RUN}}}": f"0.3+0x{MINUTES}"}, set()),
    "TrainerAndEnginesDriftApart": ({f"ray_miles_lite_logprob_gap{{{RUN}}}": f"0.2+0x{MINUTES}"}, set()),
    "EngineGetsNoRequests": ({OTHER: f"0+0x{MINUTES}"}, set()),
    "NoEngineIsReady": ({ONE: f"0+0x{MINUTES}", OTHER: f"0+0x{MINUTES}"}, {"EngineGetsNoRequests"}),
    "RequestsWaitAtTheRouter": ({f"router_queue_length{{{ROUTER}}}": f"5+0x{MINUTES}"}, set()),
    "EngineRequestsFail": ({f'router_worker_failed_total{{worker="one", {ROUTER}}}': f"0+20x{MINUTES}"}, set()),
    "TurnsAreSlow": (turns(500), set()),
    "ServerIsGone": ({f'up{{job="miles_lite", {ROUTER}}}': f"0+0x{MINUTES}"}, set()),
}
"""By rule what is wrong, and the rules that see it, too."""


def case(name: str, series: Series, firing: set[str]) -> dict[str, Any]:
    """After an hour and twenty minutes just these fire."""
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "80m",
                "exp_samples": [{"labels": f'{{alertname="{rule}"}}', "value": 1} for rule in sorted(firing)],
            }
        ],
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not here")
def test_each_rule_fires_on_its_fault_and_on_nothing_else(tmp_path: Path) -> None:
    assert FAULTS.keys() == {rule["alert"] for rule in rules()}
    cases = [case("all is well", HEALTHY, set())]
    cases += [case(rule, {**HEALTHY, **wrong}, {rule, *too}) for rule, (wrong, too) in FAULTS.items()]
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    told = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(json.dumps(told))
    command = ["promtool", "test", "rules", str(tmp_path / "tests.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
