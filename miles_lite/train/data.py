"""How a policy is spread over ranks, behind two small strategies.

Replicated is used on CPU: every rank holds the model, gradients live in one flat buffer, and a step costs one
all-reduce. (FSDP2 runs on gloo too; its collectives per layer and pass cost a tiny model a fifth more CPU time.)
Sharded is FSDP2 over all the ranks that tensor parallelism leaves: parameters, gradients and optimizer state are
sharded per decoder layer, on CUDA computed in bfloat16 with float32 masters and gradient sums. Its models are made on
the meta device, cut, sharded and only then loaded, so that no rank ever holds a whole one.

Invariant: losses carry their own denominators, so gradients are summed, never averaged; after `finish_gradients` all
ranks hold the same clipped gradient, or their shards of it. Every rank takes part in every collective, also one that
has nothing to train.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from miles_lite.config.lora import LoRA
from miles_lite.config.parallel import Compute
from miles_lite.errors import UserError
from miles_lite.train import adapters, norms
from miles_lite.train.context import Context
from miles_lite.train.expert_parallel import share_out
from miles_lite.train.loading import empty_model, fill, layers_of, load_model
from miles_lite.train.mesh import DataParallel, Mesh
from miles_lite.train.policy import Policy
from miles_lite.train.tensor_parallel import Tensors, cut

M_MMAP_THRESHOLD = -3
"""malloc.h's."""

LARGE = 1 << 17
"""Bytes; glibc begins with it, too."""


class Sums(Protocol):
    """Sums and maxima over ranks, in place; all ranks take part."""

    def sum_samples(self, values: Tensor) -> Tensor:
        """Of what each data-parallel index has of its own samples."""

    def most(self, values: Tensor) -> Tensor:
        """The maximum."""


class Strategy(Protocol):
    """How a policy is spread over ranks."""

    @property
    def mesh(self) -> Sums:
        """The ranks."""

    def load(self, folder: str | Path, kind: type[Policy] = Policy, *, lora: LoRA | None = None) -> Policy:
        """The policy of a Hugging Face folder, on this rank's device, ready for the collectives below; with `lora` only
        its adapters are trained. Collective."""

    def rounds(self, passes: Sequence[int]) -> list[int]:
        """How many forward passes each step must make on this rank, given how many it needs."""

    def zero_grad(self, policy: Policy) -> None:
        """Before the first backward pass of a step."""

    def finish_gradients(self, policy: Policy, *, max_norm: float) -> float:
        """Sum gradients over ranks and clip them to `max_norm` (0: off); the global L2 norm before clipping."""


class Replicated:
    """The whole model on every rank; one flat gradient buffer, one all-reduce per step."""

    def __init__(self, compute: Compute | None = None) -> None:
        self.mesh = DataParallel()
        self._compute = compute or Compute()
        self._flat: Tensor | None = None

    def load(self, folder: str | Path, kind: type[Policy] = Policy, *, lora: LoRA | None = None) -> Policy:
        model = load_model(folder, self._compute)
        if lora is not None:
            adapters.adapt(model, lora, base=str(folder))
            adapters.start(model, device=torch.device("cpu"))
        return kind(model)

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
        self.mesh.sum_samples(self._flat)
        norm = float(torch.linalg.vector_norm(self._flat, dtype=torch.float64))  # in float32 it loses digits on a CPU
        if max_norm and norm > max_norm:
            self._flat.mul_(max_norm / norm)
        return norm


class Sharded:
    """FSDP2 over a mesh: each decoder layer is a shard group, the rest of the model another."""

    def __init__(self, mesh: Mesh, device: torch.device, compute: Compute | None = None) -> None:
        if device.type == "cpu":
            give_back_freed_memory()
        self.mesh = mesh
        self._device = device
        self._compute = compute or Compute()
        self._tensors: Tensors | None = None

    def load(self, folder: str | Path, kind: type[Policy] = Policy, *, lora: LoRA | None = None) -> Policy:
        model = empty_model(folder, self._compute)
        experts, tensor, context = self.mesh.expert, self.mesh.tensor, Context(self.mesh.context)
        holders = [] if experts is None else share_out(model, experts, tensor)
        if lora is not None:
            adapters.adapt(model, lora, base=str(folder))
        if tensor.size() > 1:
            self._tensors = cut(model, tensor, experts=experts is None)
        with self._device:
            policy = kind(model)
        if context.size > 1:
            if policy.unpackable is not None:
                raise UserError(f"--context-parallel-size: {folder} cannot be packed: {policy.unpackable}")
            policy.context = context
        half = self._device.type == "cuda"
        precision = MixedPrecisionPolicy(*(torch.bfloat16, torch.float32) if half else ())
        offload = CPUOffloadPolicy() if half and self._compute.optimizer_cpu_offload else OffloadPolicy()
        parts = [(module, self.mesh.expert_shard) for module in holders]
        parts += [(module, self.mesh.shard) for module in (*layers_of(model), policy)]
        for module, mesh in parts:
            sharded = fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
        offloaded = isinstance(offload, CPUOffloadPolicy)
        device = torch.device("cpu") if offloaded else self._device
        with adapters.taken_out(model):
            fill(model, folder, device=device)
        adapters.start(model, device=device)
        return policy

    def rounds(self, passes: Sequence[int]) -> list[int]:
        most = torch.tensor(list(passes), dtype=torch.int64)
        return [int(count) for count in self.mesh.most(most)]

    def zero_grad(self, policy: Policy) -> None:
        policy.zero_grad(set_to_none=True)

    def finish_gradients(self, policy: Policy, *, max_norm: float) -> float:
        if self._tensors is not None:
            self._tensors.finish(policy.model)
        gradients = [parameter.grad for parameter in trainable(policy) if parameter.grad is not None]
        return norms.clip(gradients, max_norm=max_norm)


def give_back_freed_memory() -> None:
    """Let large tensors' memory go back to the system when they are freed. As layers are made whole and freed in turn,
    glibc would learn to keep theirs in a heap, where the pieces between what stays add up to another model."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


def trainable(policy: Policy) -> Iterable[torch.nn.Parameter]:
    """The parameters that get gradients, in the policy's order."""
    return (parameter for parameter in policy.parameters() if parameter.requires_grad)
