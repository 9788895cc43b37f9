"""A Ray cluster of this process's own, whatever other ones this machine has."""

from __future__ import annotations

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import ray

from miles_lite.stack.cluster import own_cluster, starting


@contextlib.contextmanager
def local_cluster(*, cpus: int, **options: Any) -> Iterator[None]:
    """One node of so many CPUs; `options` are those of `ray.init`, and `_system_config` adds to that of a run's own.
    Never joins one that another test process began."""
    own = own_cluster(dashboard=False)
    own["_system_config"] |= options.pop("_system_config", {})
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    with starting(watched=False):
        ray.init(address="local", num_cpus=cpus, **own | quiet | options)
    try:
        yield
    finally:
        ray.shutdown()


def metrics_page() -> str:
    """What Ray serves of the cluster's node; nothing while it does not listen yet."""
    endpoint = next(f"http://127.0.0.1:{node['MetricsExportPort']}" for node in ray.nodes())
    with contextlib.suppress(OSError), urllib.request.urlopen(endpoint, timeout=60) as answer:
        page: str = answer.read().decode()
        return page
    return ""
