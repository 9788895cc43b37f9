"""What Prometheus scrapes: the state of every worker and of the queue.

Invariant: computed when asked for; requests pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from miles_lite.router.admission import Admission
from miles_lite.router.registry import Registry

STATES = ("ready", "unreachable", "stale", "draining")
LABELS = ("worker", "worker_type")


class RouterCollector:
    """Prometheus's view of one router."""

    def __init__(self, registry: Registry, admission: Admission) -> None:
        self._registry = registry
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        """One sample per worker and metric."""
        workers = list(self._registry)
        states = GaugeMetricFamily("router_worker_state", "1 for the state a worker is in", labels=(*LABELS, "state"))
        load = GaugeMetricFamily("router_worker_in_flight", "requests forwarded and not ended", labels=LABELS)
        served = CounterMetricFamily("router_worker_answered", "requests answered", labels=LABELS)
        broken = CounterMetricFamily("router_worker_failed", "requests that failed by the worker", labels=LABELS)
        for worker in workers:
            labels = (worker.url, worker.worker_type)
            for state in STATES:
                states.add_metric((*labels, state), worker.state == state)
            load.add_metric(labels, worker.in_flight)
            served.add_metric(labels, worker.served)
            broken.add_metric(labels, worker.broken)
        yield from (states, load, served, broken)
        yield GaugeMetricFamily("router_queue_length", "requests that wait for room", value=self._admission.waiting)


def render(collector: RouterCollector) -> bytes:
    """The page, in Prometheus's text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    page: bytes = generate_latest(registry)
    return page
