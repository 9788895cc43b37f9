"""A Ray cluster of this process's own, whatever other ones this machine has."""

from __future__ import annotations

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster

from miles_lite.stack.cluster import own_cluster, starting

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}


@contextlib.contextmanager
def local_cluster(*, cpus: int, **options: Any) -> Iterator[None]:
    """One node of so many CPUs; `options` are those of `ray.init`, and `_system_config` adds to that of a run's own.
    Never joins one that another test process began."""
    own = own_cluster(dashboard=False)
    own["_system_config"] |= options.pop("_system_config", {})
    with starting(watched=False):
        ray.init(address="local", num_cpus=cpus, **own | QUIET | options)
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


@contextlib.contextmanager
def cluster_of_nodes(count: int, **node: Any) -> Iterator[None]:
    """So many nodes on this machine, each as `node` says in the words of `ray.init`."""
    node |= {"object_store_memory": 100_000_000}
    with starting(watched=False):
        nodes = Cluster(initialize_head=True, head_node_args=own_cluster(dashboard=False) | node)
        for _ in range(1, count):
            nodes.add_node(**node)
    try:
        ray.init(address=nodes.address, **QUIET)
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()
