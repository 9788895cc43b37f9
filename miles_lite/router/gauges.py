"""The state of a router's workers as Ray gauges: they show in the Ray dashboard and in each node's Prometheus endpoint.

Invariant: needs a started Ray; a worker that is gone shows 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Gauge

from miles_lite.process.json_types import JsonMapping

TAGS = ("worker", "worker_type")
IN_FLIGHT = "miles_lite_router_in_flight", "Requests forwarded and not ended"
READY = "miles_lite_router_ready", "1 when it is given requests"


class WorkerGauges:
    """Requests in flight and readiness by worker. Ray puts `ray_` before the names."""

    def __init__(self) -> None:
        self._load, self._ready = (Gauge(name, description=text, tag_keys=TAGS) for name, text in (IN_FLIGHT, READY))
        self._known: set[tuple[str, str]] = set()

    def update(self, workers: Iterable[JsonMapping]) -> None:
        """Set the gauges to what GET /workers lists."""
        rows = {(one["url"], one["worker_type"]): one for one in workers}
        self._known |= rows.keys()
        for key in self._known:
            row, tags = rows.get(key, {}), dict(zip(TAGS, key, strict=True))
            self._load.set(float(row.get("load", 0)), tags=tags)
            self._ready.set(float(row.get("is_healthy", False)), tags=tags)
