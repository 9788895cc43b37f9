"""A process group of the trainer's rank 0 and engines' ranks, beside the trainer's own.

Invariant: every wait for engines ends after GROUP_TIMEOUT seconds.
"""

from __future__ import annotations

import uuid
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]

from miles_lite.weights.bucket import GROUP_TIMEOUT, Meeting
from miles_lite.weights.compat import process_group

_BOUND = timedelta(seconds=GROUP_TIMEOUT)


class Group:
    """Rank 0 of it; engines' ranks follow from 1."""

    def __init__(self, *, host: str, world_size: int, device: torch.device) -> None:
        self._store = TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=_BOUND)
        self._group: ProcessGroup | None = None
        self.meeting = Meeting(
            host=host,
            port=self._store.port,
            name=f"weights-{uuid.uuid4().hex[:8]}",
            backend="nccl" if device.type == "cuda" else "gloo",
            world_size=world_size,
        )

    def join(self) -> None:
        """Return once everyone is there. Raises RuntimeError after GROUP_TIMEOUT."""
        at = self.meeting
        self._group = process_group(
            self._store, name=at.name, backend=at.backend, world_size=at.world_size, timeout=_BOUND
        )

    def broadcast(self, flat: Tensor) -> None:
        """Send `flat` to every other rank. Raises RuntimeError when they do not take it in time."""
        assert self._group is not None, "join comes first"
        options = dist.BroadcastOptions()
        options.rootRank = 0
        if not self._group.broadcast([flat], options).wait(_BOUND):
            raise RuntimeError(f"the engines did not take a bucket of {flat.nbytes} bytes in {GROUP_TIMEOUT:g} s")
        if flat.is_cuda:
            torch.cuda.synchronize(flat.device)

    def close(self) -> None:
        """Leave; ranks that still wait get an error (gloo) or their own timeout (NCCL)."""
        group, self._group = self._group, None
        if group is None:
            return
        if self.meeting.backend == "nccl":
            group.abort()  # else the next line waits for what is under way
        dist.destroy_process_group(group)
