"""What an engine is asked to be (`EngineSpec`) and what it became (`EngineInfo`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from miles_lite.config.choices import Device, WorkerType
from miles_lite.config.engines import Engines, Routing, WeightUpdates
from miles_lite.config.places import Hosts


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One SGLang server: the options it is started with, and what belongs to this one alone.

    index            names the log and makes the seed: random_seed = seed + index
    router_urls      where it registers once healthy
    log_path         file that takes the server's stdout and stderr
    slots            tensor-parallel size, over all nodes: GPUs, or processes of a CPU server
    nodes            how many nodes it spans; each has an actor and a server process
    node_rank        which of them this one is; only the first answers requests
    external_url     where a server runs that somebody else started; None: one is started
    admin_key        what opens the server's weight endpoints; None: they are open
    router_key       the router's admin key; None: it has none
    weight_version   what it reports until the first weight update
    context_length   tokens; None: the model's own
    threads          OMP threads of a CPU server; None: what the environment says
    """

    index: int
    model_path: str
    device: Device
    log_path: str
    engines: Engines = field(default_factory=Engines)
    routing: Routing = field(default_factory=Routing)
    updates: WeightUpdates = field(default_factory=WeightUpdates)
    hosts: Hosts = field(default_factory=Hosts)
    worker_type: WorkerType = WorkerType.REGULAR
    router_urls: tuple[str, ...] = ()
    seed: int = 0
    slots: int = 1
    nodes: int = 1
    node_rank: int = 0
    external_url: str | None = None
    admin_key: str | None = field(default=None, repr=False)
    router_key: str | None = field(default=None, repr=False)
    weight_version: int = 0
    context_length: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """A running server.

    pid             SGLang's own, 0 for an external one
    bootstrap_port  set for prefill workers
    ranks           how many processes hold a part of its weights
    memory          what `bucket.memory` says where they run; None: they run on different nodes, or nobody knows
    """

    url: str
    worker_type: WorkerType
    bootstrap_port: int | None
    pid: int
    weight_version: int
    ranks: int = 1
    memory: str | None = None
