"""Engines and router: SGLang servers, who shares requests among them, and how new weights reach them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from miles_lite.config.choices import PauseMode, PolicyName, RouterKind, TransferMode
from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Engines:
    """engines: SGLang servers; any --sglang-FLAG is passed on to SGLang."""

    engine_start_timeout: float = option(300.0, help="seconds an engine may take to start", above=0)
    engine_health_interval: float = option(
        2.0, help="seconds between two probes of an engine", above=0, aka=("--rollout-health-check-interval",)
    )
    engine_health_timeout: float = option(
        10.0,
        help="seconds without a token after which an idle processor is a hang",
        above=0,
        aka=("--rollout-health-check-timeout",),
    )
    engine_hang_timeout: float = option(
        300.0, help="seconds without a token that are a hang whatever is computed", above=0
    )
    engine_restarts: int = option(3, help="how often a dead engine is replaced", least=0)
    sglang_args: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """SGLang's own options by underscored name; they win over every default. True is a bare flag, False and None leave
    the flag out, a list gives several values."""

    @property
    def returns_experts(self) -> bool:
        """Whether the experts that routed each token come with it."""
        return bool(self.sglang_args.get("enable_return_routed_experts"))

    def text(self, name: str) -> str | None:
        """SGLang's option of that name, where it was given a value."""
        value = self.sglang_args.get(name)
        return value if isinstance(value, str) else None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """router: who takes a request, and how long it waits."""

    sglang_server_concurrency: int = option(512, help="requests in flight per engine", least=1)
    router: RouterKind = option(RouterKind.PYTHON, help="gateway: the Rust gateway smg carries the data")
    router_policy: PolicyName = option(
        PolicyName.LEAST_IN_FLIGHT,
        help="who takes a request that sticks to no engine",
        aka=("--sglang-router-policy",),
        read=dict.fromkeys(("cache_aware", "consistent_hashing", "manual", "prefix_hash"), PolicyName.LEAST_IN_FLIGHT),
    )
    router_timeout: float = option(
        600.0,
        help="seconds the router waits for an engine's answer",
        above=0,
        aka=("--sglang-router-request-timeout-secs", "--miles-router-timeout"),
    )
    router_queue_seconds: float = option(60.0, help="seconds a request waits for an engine with room", least=0)


@dataclass(frozen=True, kw_only=True)
class RouterAddress:
    """router address: of the one that is started, or of one that runs."""

    sglang_router_ip: str | None = option(None, help="use the router that runs there (default: start one)")
    sglang_router_port: int | None = option(
        None, help="the router's port, or the first of several routers' (default: a free one each)", least=1, most=65535
    )
    num_routers: int = option(1, help="routers that are started; session servers take turns among them", least=1)


@dataclass(frozen=True, kw_only=True)
class WeightUpdates:
    """weight updates: how new weights reach the engines."""

    pause_generation_mode: PauseMode = option(PauseMode.RETRACT, help="what a weight update does to requests in flight")
    update_weight_transfer_mode: TransferMode = option(
        TransferMode.DISK,
        help="how weights travel to the engines: in a folder, in shared memory of one node, or by broadcast",
        read={"broadcast": TransferMode.DISTRIBUTED},
    )
    offload_rollout: bool = option(False, help="engines free their memory while the trainer works (with --colocate)")
    update_weight_buffer_size: int = option(
        512 << 20,
        help="bytes per bucket of modes tensor and distributed",
        least=1,
        with_="update_weight_transfer_mode=tensor or update_weight_transfer_mode=distributed",
    )
    check_weight_update_equal: bool = option(
        False, help="after each update, compare every tensor the engines serve with the folder of that version"
    )
