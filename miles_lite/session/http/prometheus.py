"""The counters of a session server in Prometheus' text format.

Invariant: every number of `Service.stats` is here; what can go down is a gauge, everything else a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from miles_lite.session.counters import GAUGES

_PREFIX = "miles_lite_session_"
SECONDS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics(Collector):
    """`turn_seconds` observes a turn from its request to its answer, the engine's share included."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self._stats = stats
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.turn_seconds = Histogram(
            f"{_PREFIX}turn_seconds",
            "Seconds of a turn, the engine's included",
            buckets=SECONDS,
            registry=self._registry,
        )

    def collect(self) -> Iterable[Metric]:
        for name, value in self._stats().items():
            family = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield family(_PREFIX + name, name.replace("_", " "), value=value)

    def text(self) -> bytes:
        return bytes(generate_latest(self._registry))
