"""Gauges: that Ray takes them, and that the node's metrics endpoint shows them."""

from __future__ import annotations

import re
import time

import pytest

from miles_lite.observe.gauges import Gauges
from tests.clusters import local_cluster, metrics_page


@pytest.mark.e2e
def test_gauges_reach_the_nodes_endpoint() -> None:
    with local_cluster(cpus=1, _system_config={"metrics_report_interval_ms": 500}):
        gauges = Gauges("a-run")
        deadline = time.monotonic() + 60
        text = ""
        while "miles_lite_reward" not in text and time.monotonic() < deadline:
            gauges.log({"rollout/reward_unfiltered": 0.75, "unknown/metric": 1.0}, step=2, step_key="rollout/step")
            time.sleep(0.5)
            text = metrics_page()
        reward = re.search(r'ray_miles_lite_reward\{[^}]*run="a-run"[^}]*\} 0\.75', text)
        assert reward is not None, "the gauge did not appear within 60 s"
