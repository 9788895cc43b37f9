"""Data parallelism behind two small strategies: one process group, gradients summed over ranks.

Replicated is used on CPU: every rank holds the model, gradients live in one flat buffer, and a step costs one
all-reduce. (FSDP2 runs on gloo too; its collectives per layer and pass cost a tiny model a fifth more CPU time.)
Sharded is FSDP2 and is used on CUDA: parameters, gradients and optimizer state are sharded per decoder layer, computed
in bfloat16 with float32 masters and gradient sums.

Invariant: losses carry their own denominators, so gradients are summed, never averaged; after `finish_gradients` all
ranks hold the same clipped gradient. Every rank takes part in every collective, also one that has nothing to train.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from miles_lite.process.addresses import loopback
from miles_lite.train.policy import Policy


class Strategy(Protocol):
    """How a policy is spread over ranks."""

    def wrap(self, policy: Policy) -> None:
        """Prepare a policy for the collectives below; before its optimizer is made."""

    def rounds(self, passes: Sequence[int]) -> list[int]:
        """How many forward passes each step must make on this rank, given how many it needs."""

    def zero_grad(self, policy: Policy) -> None:
        """Before the first backward pass of a step."""

    def finish_gradients(self, policy: Policy, *, max_norm: float) -> float:
        """Sum gradients over ranks and clip them to `max_norm` (0: off); the global L2 norm before clipping."""


class Replicated:
    """The whole model on every rank; one flat gradient buffer, one all-reduce per step."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def wrap(self, policy: Policy) -> None:
        del policy

    def rounds(self, passes: Sequence[int]) -> list[int]:
        return list(passes)

    def zero_grad(self, policy: Policy) -> None:
        if self._flat is not None:
            self._flat.zero_()
            return
        parameters = list(trainable(policy))
        self._flat = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
        pieces = torch.split(self._flat, [parameter.numel() for parameter in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def finish_gradients(self, policy: Policy, *, max_norm: float) -> float:
        assert self._flat is not None, "zero_grad comes first"
        all_reduce(self._flat)
        norm = float(torch.linalg.vector_norm(self._flat))
        if max_norm and norm > max_norm:
            self._flat.mul_(max_norm / norm)
        return norm


class Sharded:
    """FSDP2: each decoder layer is a shard group, the rest of the model another."""

    def __init__(self, device: torch.device) -> None:
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        half = device.type == "cuda"
        self._precision = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if half
            else MixedPrecisionPolicy()
        )

    def wrap(self, policy: Policy) -> None:
        layers = next(module for module in policy.modules() if isinstance(module, nn.ModuleList))
        for module in (*layers, policy):
            sharded = fully_shard(module, mesh=self._mesh, mp_policy=self._precision)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)

    def rounds(self, passes: Sequence[int]) -> list[int]:
        most = torch.tensor(list(passes), dtype=torch.int64)
        return [int(count) for count in all_reduce(most, maximum=True)]

    def zero_grad(self, policy: Policy) -> None:
        policy.zero_grad(set_to_none=True)

    def finish_gradients(self, policy: Policy, *, max_norm: float) -> float:
        norm = nn.utils.clip_grad_norm_(trainable(policy), max_norm or float("inf"))
        return float(norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm)


def trainable(policy: Policy) -> Iterable[nn.Parameter]:
    """The parameters that get gradients, in the policy's order."""
    return (parameter for parameter in policy.parameters() if parameter.requires_grad)


def all_reduce(values: Tensor, *, maximum: bool = False) -> Tensor:
    """Sum (or maximum) over ranks, in place; all give the same shape. Without a process group this is the only rank."""
    if values.numel() and dist.is_initialized():
        dist.all_reduce(values, op=dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM)
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
