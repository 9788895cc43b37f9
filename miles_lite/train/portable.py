"""A learner's state as it is saved: in pieces that any mesh can read.

Invariant: what is given shares memory with the model and its optimizer, so that loading in place restores them. Two
matrices that transformers keeps in one, each cut over tensor ranks, stand apart here: as one they would be in strides,
which torch.distributed.checkpoint refuses. They do so on every mesh, that shapes agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict
from torch.distributed.tensor import DTensor, Placement, Shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from miles_lite.train.learner import Learner

PACKED = "packed_colwise"
PARTS = 2
"""Matrices in a packed one: transformers' split factor."""


def state_of(learner: Learner, *, optimizer: bool) -> dict[str, Any]:
    """What is saved, and loaded in place: model, optimizer unless told otherwise, and the count of updates."""
    if optimizer:
        model, optimizers = get_state_dict(learner.policy, learner.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizers["state"]}
    else:
        state = {"model": get_model_state_dict(learner.policy)}
    return {**_unpacked(state, _packed(learner.policy.model)), "updates": learner.updates}


def _packed(model: PreTrainedModel) -> re.Pattern[str]:
    """Names of packed parameters, by the model's tensor-parallel plan."""
    names = [name for name, style in model.tp_plan.items() if style == PACKED]
    patterns = [re.escape(name).replace(r"\*", r"\d+") for name in names]
    return re.compile(rf"model\.(?:{'|'.join(patterns)})(?:\.weight)?" if patterns else r"(?!)")


def _unpacked(state: Mapping[str, Any], packed: re.Pattern[str]) -> dict[str, Any]:
    """The same with views of packed tensors, whether they are parameters or an optimizer's of them."""
    result: dict[str, Any] = {}
    for name, value in state.items():
        if packed.fullmatch(name):
            of_it = value.items() if isinstance(value, dict) else ()
            split = {part: unpack(each) if _is_matrix(each) else each for part, each in of_it}
            result[name] = split if isinstance(value, dict) else unpack(value)
        else:
            result[name] = _unpacked(value, packed) if isinstance(value, dict) else value
    return result


def _is_matrix(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1


def unpack(tensor: Tensor) -> Tensor:
    """A view [..., PARTS, n, m] of a tensor [..., PARTS x n, m], whose shards are contiguous ones."""
    dim = tensor.ndim - 2
    if not isinstance(tensor, DTensor):
        return tensor.view(_parted(tensor, dim))
    shape = _parted(tensor, dim)
    strides = [1]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    placements = [_behind(placement, dim) for placement in tensor.placements]
    return DTensor.from_local(
        tensor.to_local().view(_parted(tensor.to_local(), dim)),
        tensor.device_mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=tuple(strides),
    )


def _parted(tensor: Tensor, dim: int) -> torch.Size:
    """Its shape with `dim` as PARTS equal ones."""
    return torch.Size([*tensor.shape[:dim], PARTS, tensor.shape[dim] // PARTS, *tensor.shape[dim + 1 :]])


def _behind(placement: Placement, dim: int) -> Placement:
    """Of a cut in `dim` or behind it, the cut one dimension further on."""
    cut = getattr(placement, "dim", None)
    return placement if cut is None or cut < dim else Shard(cut + 1)
