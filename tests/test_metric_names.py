"""docs/metrics.md names what is logged, and nothing else; of the trainer, tests/train/test_learner.py shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from miles_lite.config.rewards import Overlong
from miles_lite.errors import FAILURES
from miles_lite.rollout.agent_report import AGENT_TIMES, AGENT_TOTALS
from miles_lite.rollout.generate import Step
from miles_lite.rollout.judging import CATEGORY
from miles_lite.rollout.metrics import MISMATCHES, eval_metrics, staleness_metrics, step_metrics
from miles_lite.session.counters import BY_REASON, COUNTERS, GAUGES, Counters
from miles_lite.train.phases import PHASES
from tests.metric_names import undocumented, unlogged
from tests.rollout.helpers import a_group, a_rollout, a_sample, failed, of

PACKAGE = Path(__file__).parents[1] / "miles_lite"


def computed() -> set[str]:
    """Everything that groups give: all end in all ways, and every agent reports everything."""
    differing = a_sample(4, [0, 1], metadata={"tito_session_mismatch": [{"type": kind} for kind in MISMATCHES]})
    unknown = a_sample(4, metadata={"tito_session_mismatch": None})
    reports: dict[str, object] = {**dict.fromkeys((*AGENT_TOTALS, *AGENT_TIMES), 1.0), "rewards": {"math": 1.0}}
    reports[CATEGORY] = "short"
    groups = [
        a_group(0, 0),
        a_group(1, 1),
        *of(a_rollout(samples=[differing, unknown], metadata=reports)),
        *of(*map(failed, FAILURES)),
    ]
    step = Step(groups=groups, finished=groups, reasons={0: "short"}, replaced=of(*map(failed, FAILURES)))
    logged = step_metrics(step, overlong=Overlong(8, 4, 1.0), passrate=True)
    return {*logged, *eval_metrics("heldout", groups), *staleness_metrics(groups, 1)}


def spelled_out() -> set[str]:
    """The names that stand in the source of the run, the manager and the trainer; a variable part is `x`."""
    rooms = ("job/run.py", "job/log.py", "rollout/manager.py", "rollout/curriculum.py", "report/metric_names.py")
    sources = (*rooms, "train/learner.py", "train/utilisation.py")
    text = "".join((PACKAGE / source).read_text(encoding="utf-8") for source in sources)
    found = re.findall(r'"((?:rollout|train|eval|perf)/[^"\s]+)"', text)
    phases = {f"perf/{phase}_time" for phase in PHASES}
    return {re.sub(r"\{\w+\}", "x", name) for name in found} - {"train/x", "perf/x_time"} | phases


def test_every_metric_is_on_the_page() -> None:
    assert undocumented(computed() | spelled_out()) == set()
    assert undocumented({"rollout/no_such_name", "train/loss"}) == {"rollout/no_such_name"}


def test_the_page_names_no_other() -> None:
    logged = computed() | spelled_out()
    for family in ("rollout/", "agent/", "passrate/", "eval/", "perf/"):
        assert unlogged(family, logged) == set()
    assert "eval/duration_seconds" in logged
    assert unlogged("perf/", logged - {"perf/step_time"}) == {"perf/step_time"}


def test_the_sessions_count_what_the_page_says() -> None:
    counted = {f"session/{name}" for name in [*GAUGES, *COUNTERS, *(f"{prefix}x" for prefix in BY_REASON)]}
    assert undocumented(counted) == set()
    assert unlogged("session/", counted) == set()
    with pytest.raises(KeyError, match="surprises"):
        Counters().add({"surprises": 1})
