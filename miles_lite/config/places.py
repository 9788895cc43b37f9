"""Where a run is: its slots, its hosts, its Ray cluster, its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miles_lite.config.option import option


@dataclass(frozen=True, kw_only=True)
class Topology:
    """topology: how many trainers and engines, and where."""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", help="what a slot is; auto: cuda where there is a GPU", aka=("--sglang-device",)
    )
    actor_num_nodes: int = option(1, help="nodes that train", least=1)
    actor_num_gpus_per_node: int = option(1, help="train ranks per node (on CPU: processes)", least=1)
    rollout_num_gpus: int | None = option(None, help="slots for engines; with --colocate the trainers' slots", least=1)
    rollout_num_gpus_per_engine: int = option(
        1, help="slots per engine", least=1, aka=("--sglang-tp-size", "--sglang-tensor-parallel-size", "--sglang-tp")
    )
    num_gpus_per_node: int = option(8, help="GPUs a node has", least=1)
    rollout_external_engine_addrs: tuple[str, ...] = option(
        (), help="host:port of SGLang servers that run already, instead of starting any"
    )
    sglang_config: str | None = option(
        None, help="YAML file of engine groups: roles, sizes, SGLang options of each", path=True
    )
    prefill_num_servers: int = option(
        0, help="how many of the engines only prefill; the others then only decode", least=0
    )
    colocate: bool = option(False, help="engines and trainers share slots")

    @property
    def world_size(self) -> int:
        """Ranks of the trainer."""
        return self.actor_num_nodes * self.actor_num_gpus_per_node

    @property
    def rollout_slots(self) -> int:
        """GPUs (on CPU: processes) of all engines; 0 where they run already."""
        if self.rollout_external_engine_addrs:
            return 0
        if self.rollout_num_gpus is not None:
            return self.rollout_num_gpus
        return self.world_size if self.colocate else self.rollout_num_gpus_per_engine

    @property
    def num_engines(self) -> int:
        return self.rollout_slots // self.rollout_num_gpus_per_engine


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """network: where servers listen, and what others are told."""

    bind_host: str = option("127.0.0.1", help="interface every server binds to")
    advertise_host: str | None = option(None, help="host name others are told (default: --bind-host)")

    @property
    def public_host(self) -> str:
        """What others are told to reach."""
        return self.advertise_host or self.bind_host


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Ray: which cluster."""

    ray_address: str | None = option(None, help="join this Ray cluster (default: RAY_ADDRESS, else a local one)")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """run folder: what a command leaves behind."""

    run_dir: str = option("runs/latest", help="folder for metrics.jsonl, logs, plots, weights, summary.json", path=True)

    @property
    def path(self) -> Path:
        """Absolute, links resolved."""
        return Path(self.run_dir).expanduser().resolve()
