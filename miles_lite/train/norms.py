"""The global L2 norm of gradients that lie on several meshes, and clipping by it.

Invariant: every element counts once, however many ranks hold it; all ranks get the same norm to the bit, so that what
is on several of them stays equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from miles_lite.train.mesh import reduce


def clip(gradients: Sequence[Tensor], *, max_norm: float) -> float:
    """Scale gradients (plain, or DTensors of any mesh) in place to a global norm of at most `max_norm` (0: not at all);
    the norm before. Collective."""
    norm = global_norm(gradients)
    if max_norm and norm > max_norm:
        torch._foreach_mul_([local(gradient) for gradient in gradients], max_norm / norm)
    return norm


def global_norm(gradients: Iterable[Tensor]) -> float:
    """The L2 norm of all of them as one vector. Collective."""
    alike: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        spread = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        alike.setdefault((spread, gradient.dtype), []).append(gradient)
    total = torch.zeros((), dtype=torch.float64)
    for group in alike.values():
        squares = torch.stack(torch._foreach_norm([local(each) for each in group])).double().square().sum()
        if isinstance(group[0], DTensor):
            squares = _over_shards(squares, group[0])
        total += squares.cpu()
    return float(reduce(total, None, maximum=True).sqrt())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _over_shards(values: Tensor, like: DTensor) -> Tensor:
    """The sum over the ranks that hold different parts of `like`."""
    for number, placement in enumerate(like.placements):
        if hasattr(placement, "dim"):
            dist.all_reduce(values, group=like.device_mesh.get_group(number))
    return values
