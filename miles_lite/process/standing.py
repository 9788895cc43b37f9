"""How actors stand, as Ray's own tables have it: asked of the cluster, not of the actors, which may not answer.

Invariant: nothing here raises; what Ray does not say is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray._private import state
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError

from miles_lite.process.remote import Remote

RUNS = "ALIVE"
_SILENT = (RayError, OSError, RuntimeError, ValueError, AttributeError)
"""What a cluster that is going away answers with."""


def describe_actor(actor: Remote[object]) -> str:
    """Whether it runs, where, and as which process; or what Ray waits for before it does."""
    with contextlib.suppress(*_SILENT):
        found: Mapping[str, Any] = state.actors(actor_id=actor.handle._actor_id.hex())
        if found["State"] == RUNS:
            return f"Ray has it as process {found['Pid']} of node {found['Address']['IPAddress']}"
        return ", ".join([f"Ray says {found['State']}", *_pending()])
    return ""


def processes(actor: Remote[object] | None = None) -> dict[str, int]:
    """Of this job's actors on this node, or of one alone where that is on it: process ids, by name, or by class where
    one has none."""
    with contextlib.suppress(*_SILENT):
        context = ray.get_runtime_context()
        job, node = context.get_job_id(), context.get_node_id()
        only = None if actor is None else actor.handle._actor_id.hex()
        table: Mapping[str, Any] = state.actors()
        return {
            each["Name"] or f"{each['ActorClassName']} {each['Pid']}": int(each["Pid"])
            for each in table.values()
            if (each["State"], each["JobID"], each["Address"]["NodeID"]) == (RUNS, job, node)
            and only in (None, each["ActorID"])
        }
    return {}


def _pending() -> Iterator[str]:
    """What the cluster has free, and what it is asked for and has not placed."""
    nodes, free = ray.nodes(), ray.available_resources()
    yield f"{sum(bool(node['Alive']) for node in nodes)} node(s) live"
    yield "free are " + (" and ".join(f"{free.get(name, 0):g} {name}" for name in ("CPU", "GPU")))
    demands = get_cluster_status(ray.get_runtime_context().gcs_address).resource_demands
    for demand in (*demands.ray_task_actor_demand, *demands.placement_group_demand):
        for each in demand.bundles_by_count:
            yield f"not placed is {each.count} x {dict(each.bundle)}"
