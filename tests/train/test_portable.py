"""Packed matrices are saved apart, in the memory that they have."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from miles_lite.train.portable import unpack


@pytest.mark.usefixtures("process_group")
def test_a_view_shares_memory_and_its_cuts_are_contiguous() -> None:
    whole = torch.arange(48.0).reshape(2, 6, 4)
    plain = unpack(whole)
    assert plain.shape == (2, 2, 3, 4)
    plain[0, 1, 0, 0] = -1.0
    assert whole[0, 3, 0] == -1.0
    mesh = init_device_mesh("cpu", (1,))
    spread = unpack(distribute_tensor(whole, mesh, [_StridedShard(1, split_factor=2)], src_data_rank=None))
    assert isinstance(spread, DTensor)
    assert spread.shape == (2, 2, 3, 4)
    assert spread.placements == (Shard(2),)
    assert torch.equal(spread.full_tensor(), plain)
