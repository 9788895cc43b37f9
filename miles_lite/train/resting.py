"""Models that are asked and never trained: on the device while they are, in host memory otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from miles_lite.train.policy import Policy


@contextlib.contextmanager
def awake(policy: Policy, device: torch.device, *, moves: bool) -> Iterator[Policy]:
    """The policy on its device until the end. `moves`: it rests in host memory, and goes back there."""
    if moves:
        policy.to(device)
    yield policy
    if moves:
        rest(policy)


def rest(policy: Policy) -> None:
    """Into host memory."""
    policy.to("cpu")
    torch.cuda.empty_cache()


def snapshot(policy: Policy) -> list[Tensor]:
    """This rank's part of its parameters, copied into host memory."""
    return [each.detach().to("cpu", copy=True) for each in own_parts(policy)]


def restore(policy: Policy, parts: list[Tensor]) -> None:
    """Put parameters back that `snapshot` copied."""
    with torch.no_grad():
        for mine, part in zip(own_parts(policy), parts, strict=True):
            mine.copy_(part)


def own_parts(policy: Policy) -> Iterator[Tensor]:
    """What this rank holds of each parameter."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for parameter in policy.parameters():
        yield parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
