"""A router's engines on the metrics page that Ray serves on each node."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from tests.clusters import local_cluster, metrics_page
from tests.router.upstream import reachable_urls

Values = dict[tuple[str, str], float]


@pytest.mark.e2e
def test_engines_are_on_rays_metrics_page_until_they_are_removed() -> None:
    with local_cluster(cpus=1, _system_config={"metrics_report_interval_ms": 500}):
        actor: Any = ray.remote(RouterActor).options(num_cpus=0).remote(RouterSpec())
        router = ray.get(actor.start.remote(), timeout=60)
        with reachable_urls(2) as (first, second):
            for url in (first, second):
                assert httpx.post(f"{router}/add_worker", params={"url": url}).status_code == 200
            shown_once(lambda values: values.get(("ready", first)) == values.get(("ready", second)) == 1.0)
            assert httpx.post(f"{router}/remove_worker", params={"url": first}).status_code == 200
            values = shown_once(lambda values: values.get(("ready", first)) == 0.0)
            assert values["ready", second] == 1.0
            assert values["in_flight", second] == 0.0
        ray.get(actor.stop.remote(), timeout=60)


def shown_once(condition: Callable[[Values], bool]) -> Values:
    """The router's gauges by name and engine, as soon as the page shows that `condition`; 60 s at most."""
    deadline, values = time.monotonic() + 60, Values()
    while time.monotonic() < deadline:
        samples = [sample for family in text_string_to_metric_families(metrics_page()) for sample in family.samples]
        ours = [sample for sample in samples if sample.name.startswith("ray_miles_lite_router_")]
        assert all(sample.labels["worker_type"] == "regular" for sample in ours)
        prefix = len("ray_miles_lite_router_")
        values = {(sample.name[prefix:], sample.labels["worker"]): sample.value for sample in ours}
        if condition(values):
            return values
        time.sleep(0.5)
    raise AssertionError(f"waited 60 s for the gauges; Ray's page shows {values}")
