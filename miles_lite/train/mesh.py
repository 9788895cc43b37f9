"""Where a rank stands: a process group, and over it dp_replicate x dp_shard x cp x tp, the last varying fastest.

Invariant: the ranks of one data-parallel index (cp x tp of them) get the same batch, and all of them have its losses
and metrics in the end. So what is summed is summed over dp, and the number of ranks is no divisor of anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from miles_lite.config.parallel import Parallelism
from miles_lite.process.addresses import loopback


@dataclass(frozen=True)
class Mesh:
    """The ranks and who is in which group.

    shard     [dp_replicate, dp_shard x cp]: FSDP2's; parameters are sharded over its last dimension
    tensor    [tp]
    expert    [ep]: the ranks that share out experts, None where none do; `expert_shard` [dp_replicate, dp_shard x cp x
              tp / ep]: those that hold the same ones
    samples   ranks that have different batches
    context   ranks that share the tokens of one batch
    """

    shard: DeviceMesh
    tensor: DeviceMesh
    expert: DeviceMesh | None
    expert_shard: DeviceMesh
    samples: ProcessGroup
    context: ProcessGroup

    def sum_samples(self, values: Tensor) -> Tensor:
        """Sum over data-parallel ranks, in place."""
        return reduce(values, self.samples)

    def most(self, values: Tensor) -> Tensor:
        """The maximum over all ranks, in place."""
        return reduce(values, None, maximum=True)


@dataclass(frozen=True)
class DataParallel:
    """Data-parallel ranks that share nothing but their sums; one rank needs no process group."""

    def sum_samples(self, values: Tensor) -> Tensor:
        """See Mesh."""
        return reduce(values, None)

    def most(self, values: Tensor) -> Tensor:
        """See Mesh."""
        return reduce(values, None, maximum=True)


def make_mesh(sizes: Parallelism, *, device: torch.device) -> Mesh:
    """The mesh over all ranks of the process group; collective. The sizes fit (`config.rules.parallel`)."""
    ranks, replicas, ep = dist.get_world_size(), sizes.data_parallel_replicate_size, sizes.expert_model_parallel_size
    context, tensor = sizes.context_parallel_size, sizes.tensor_model_parallel_size
    spread = ranks // (replicas * tensor)
    root = init_device_mesh(device.type, (replicas, spread, tensor), mesh_dim_names=("dp_replicate", "shard", "tp"))
    split = init_device_mesh(
        device.type, (replicas * spread // context, context, tensor), mesh_dim_names=("dp", "cp", "tensor")
    )
    experts = init_device_mesh(
        device.type, (replicas, ranks // (replicas * ep), ep), mesh_dim_names=("dp_replicate", "efsdp", "ep")
    )
    return Mesh(
        shard=root["dp_replicate", "shard"] if replicas > 1 else root["shard"],
        tensor=root["tp"],
        expert=experts["ep"] if ep > 1 else None,
        expert_shard=experts["dp_replicate", "efsdp"] if replicas > 1 else experts["efsdp"],
        samples=split["dp"].get_group(),
        context=split["cp"].get_group(),
    )


def reduce(values: Tensor, group: ProcessGroup | None, *, maximum: bool = False) -> Tensor:
    """Sum (or maximum) over a group (None: all ranks), in place; all give the same shape."""
    if values.numel() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=group)
    return values


def open_store(host: str, *, ranks: int, timeout: float) -> TCPStore:
    """The rendezvous of a process group, on a free port of `host`; rank 0 keeps it alive. `timeout` in seconds."""
    bound = timedelta(seconds=timeout)
    return TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False, timeout=bound)


def reach_store(host: str, port: int, *, ranks: int, timeout: float) -> TCPStore:
    """The store that rank 0 opened."""
    return TCPStore(host, port, ranks, is_master=False, timeout=timedelta(seconds=timeout))


def join(store: TCPStore, *, rank: int, ranks: int, device: torch.device, host: str, timeout: float) -> None:
    """Enter the process group: gloo for CPU tensors, NCCL for CUDA ones. Every collective waits at most `timeout` s."""
    if loopback(host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    bound = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=bound)
