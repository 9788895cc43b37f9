"""What an engine is asked to be (`EngineSpec`) and what it became (`EngineInfo`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from miles_lite.weights.bucket import TransferMode

WorkerType = Literal["regular", "prefill", "decode"]


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One SGLang server.

    index            names the log and makes the seed: random_seed = seed + index
    router_url       where it registers once healthy; None: nowhere
    log_path         file that takes the server's stdout and stderr
    start_timeout    seconds until it must be healthy
    health_interval  seconds between two probes of its liveness
    health_timeout   seconds in which a token must come out, or something be computed
    hang_timeout     seconds in which a token must come out whatever is computed
    slots            tensor-parallel size, over all nodes: GPUs, or processes of a CPU server
    nodes            how many nodes it spans; each has an actor and a server process
    node_rank        which of them this one is; only the first answers requests
    external_url     where a server runs that somebody else started; None: one is started
    admin_key        what opens the server's weight endpoints; None: they are open
    router_key       the router's admin key; None: it has none
    weight_version   what it reports until the first weight update
    context_length   tokens; None: the model's own
    threads          OMP threads of a CPU server; None: what the environment says
    max_concurrency  requests that run at once on a CPU server
    transfer_mode    how weights will come
    check_weights    whether checksums will be asked for
    offload          whether its memory will be freed between rollouts
    sglang_args      SGLang's own options (underscored names), win over every default; True is a bare flag, False and
                     None leave the flag out, a list gives several values
    """

    index: int
    model_path: str
    device: Literal["cpu", "cuda"]
    bind_host: str
    advertise_host: str
    log_path: str
    worker_type: WorkerType = "regular"
    router_url: str | None = None
    start_timeout: float = 300.0
    health_interval: float = 2.0
    health_timeout: float = 10.0
    hang_timeout: float = 300.0
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
    max_concurrency: int = 64
    transfer_mode: TransferMode = "disk"
    check_weights: bool = False
    offload: bool = False
    sglang_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """A running server.

    pid             SGLang's own, 0 for an external one
    bootstrap_port  set for prefill workers
    ranks           how many processes hold a part of its weights
    memory          what `transfer.memory` says where they run; None: they run on different nodes, or nobody knows
    """

    url: str
    worker_type: WorkerType
    bootstrap_port: int | None
    pid: int
    weight_version: int
    ranks: int = 1
    memory: str | None = None
