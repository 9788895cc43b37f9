"""Rank 0's side of a weight transfer: the model's state in flat buckets, shared with engines or broadcast to them.

Invariant: at most one bucket exists beside the state, and it lives until the next one is asked for or `close`. Every
wait for engines ends after GROUP_TIMEOUT seconds.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _new_process_group_helper, _world

from miles_lite.weights.bucket import GROUP_TIMEOUT, Bucket, Meeting
from miles_lite.weights.folder import prepared
from miles_lite.weights.transformers_compat import import_transformers


def published_state(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """`state` under the names and in the shapes of the model's checkpoint files, floats in `dtype`, tied weights once.

    transformers keeps some weights in another form than files do (experts are fused); this undoes it as
    `save_pretrained` does.
    """
    import_transformers()
    from transformers.core_model_loading import revert_weight_conversion

    published: dict[str, Tensor] = revert_weight_conversion(model, prepared(model, state, dtype))
    return published


class Sender:
    """A state's buckets. `device` is where a bucket lies when engines take it, `bucket_bytes` its largest size."""

    def __init__(self, state: Mapping[str, Tensor], *, device: torch.device, bucket_bytes: int) -> None:
        self._device = device
        self._pieces = list(_pieces(state, bucket_bytes))
        self._flat: Tensor | None = None
        self.buckets = [
            Bucket(
                names=tuple(names),
                shapes=tuple(tuple(state[name].shape) for name in names),
                dtype=str(state[names[0]].dtype).removeprefix("torch."),
            )
            for names in self._pieces
        ]
        self._state = state

    def share(self, index: int, *, copies: int) -> list[bytes]:
        """Handles of bucket `index` in memory that others can open, one for each process that will: shared memory on
        the CPU, CUDA IPC on a GPU. SGLang's form of a flattened bucket (its `flattened_bucket` load format)."""
        if self._device.type == "cpu":
            multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
        self._flat = self._flatten(index)
        if self._device.type == "cpu":
            self._flat.share_memory_()  # type: ignore[no-untyped-call]
        payload = {"flattened_tensor": self._flat, "metadata": list(_layout(self.buckets[index]))}
        return [bytes(ForkingPickler.dumps(payload)) for _ in range(copies)]

    def broadcast(self, index: int, group: Group) -> None:
        """Send bucket `index` to every member of `group`. Raises RuntimeError when they do not take it in time."""
        self._flat = self._flatten(index)
        group.broadcast(self._flat)

    def close(self) -> None:
        """Free the last bucket."""
        self._flat = None

    def _flatten(self, index: int) -> Tensor:
        self._flat = None
        tensors = [self._state[name].contiguous().view(-1).view(torch.uint8) for name in self._pieces[index]]
        return torch.cat(tensors).to(self._device)


def _pieces(state: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Names in order, cut where the dtype changes and where a piece would exceed `limit` bytes."""
    for _, run in itertools.groupby(state, key=lambda name: state[name].dtype):
        piece: list[str] = []
        size = 0
        for name in run:
            if piece and size + state[name].nbytes > limit:
                yield piece
                piece, size = [], 0
            piece.append(name)
            size += state[name].nbytes
        yield piece


def _layout(bucket: Bucket) -> Iterator[SimpleNamespace]:
    """Where each tensor lies in the flat bucket, in bytes."""
    dtype: torch.dtype = getattr(torch, bucket.dtype)
    start = 0
    for name, shape in zip(bucket.names, bucket.shapes, strict=True):
        size = torch.Size(shape).numel() * dtype.itemsize
        yield SimpleNamespace(
            name=name, shape=torch.Size(shape), dtype=dtype, start_idx=start, end_idx=start + size, numel=size
        )
        start += size


class Group:
    """A process group of the trainer, rank 0, and engines' ranks, beside the trainer's own."""

    def __init__(self, *, host: str, world_size: int, device: torch.device) -> None:
        bound = timedelta(seconds=GROUP_TIMEOUT)
        self._store = TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=bound)
        self._group: Any = None
        self.meeting = Meeting(
            host=host,
            port=self._store.port,
            name=f"weights-{uuid.uuid4().hex[:8]}",
            backend="nccl" if device.type == "cuda" else "gloo",
            world_size=world_size,
        )

    def join(self) -> None:
        """Return once everyone is there. Raises RuntimeError after GROUP_TIMEOUT. SGLang builds its side with the same
        helper of torch: the public constructors only make subgroups of the default group."""
        meeting = self.meeting
        self._group, _ = _new_process_group_helper(
            meeting.world_size,
            0,
            [],
            dist.Backend(meeting.backend),
            PrefixStore(meeting.name, self._store),
            group_name=meeting.name,  # type: ignore[arg-type]
            timeout=timedelta(seconds=GROUP_TIMEOUT),
        )
        _world.pg_group_ranks[self._group] = {rank: rank for rank in range(meeting.world_size)}

    def broadcast(self, flat: Tensor) -> None:
        """Send `flat` to every other rank."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        work = self._group.broadcast([flat], options)
        if not work.wait(timedelta(seconds=GROUP_TIMEOUT)):
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
