"""A process group of one rank, for all tests of the trainer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from miles_lite.train import mesh


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """This process as the only rank."""
    torch.set_num_threads(1)
    store = mesh.open_store("127.0.0.1", ranks=1, timeout=30)
    mesh.join(store, rank=0, ranks=1, device=torch.device("cpu"), host="127.0.0.1", timeout=30)
    yield
    dist.destroy_process_group()
