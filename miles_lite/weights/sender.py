"""Rank 0's side of a weight transfer: the weights in flat buckets, shared with engines or broadcast to them.

Invariant: at most two buckets exist, the one that engines take and the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from multiprocessing.reduction import ForkingPickler

import torch
from torch import Tensor, multiprocessing

from miles_lite.weights.bucket import Bucket
from miles_lite.weights.compat import place_in_bucket
from miles_lite.weights.tensor_files import Fetch


class Sender:
    """The buckets of what `layout` describes (shapes and dtypes) and `fetch` gives. `device` is where a bucket lies
    when engines take it, `bucket_bytes` its largest size."""

    def __init__(self, layout: Mapping[str, Tensor], fetch: Fetch, *, device: torch.device, bucket_bytes: int) -> None:
        self._fetch, self._device = fetch, device
        self._flat: dict[int, Tensor] = {}
        self.buckets = [
            Bucket(
                names=tuple(names),
                shapes=tuple(tuple(layout[name].shape) for name in names),
                dtype=str(layout[names[0]].dtype).removeprefix("torch."),
            )
            for names in _runs(layout, bucket_bytes)
        ]

    def prepare(self, index: int) -> Tensor:
        """Bucket `index`, uint8 [its bytes], on the device. Those before the last are given up."""
        if index not in self._flat:
            names = self.buckets[index].names
            self._flat = {at: flat for at, flat in self._flat.items() if at == index - 1}
            pieces = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in self._fetch(names))
            self._flat[index] = torch.cat([piece.to(self._device) for piece in pieces])
        return self._flat[index]

    def share(self, index: int, *, copies: int) -> list[bytes]:
        """Handles of bucket `index` in memory that others can open, one for each process that will: shared memory on
        the CPU, CUDA IPC on a GPU. SGLang's form of a flattened bucket (its `flattened_bucket` load format)."""
        flat = self.prepare(index)
        if self._device.type == "cpu":
            multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
            flat.share_memory_()  # type: ignore[no-untyped-call]
        payload = {"flattened_tensor": flat, "metadata": list(_places(self.buckets[index]))}
        return [bytes(ForkingPickler.dumps(payload)) for _ in range(copies)]


def _runs(layout: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Names in order, cut where the dtype changes and where a bucket would exceed `limit` bytes."""
    for _, run in itertools.groupby(layout, key=lambda name: layout[name].dtype):
        names: list[str] = []
        size = 0
        for name in run:
            if names and size + layout[name].nbytes > limit:
                yield names
                names, size = [], 0
            names.append(name)
            size += layout[name].nbytes
        yield names


def _places(bucket: Bucket) -> Iterator[object]:
    """Where each tensor lies in the flat bucket, in bytes."""
    dtype: torch.dtype = getattr(torch, bucket.dtype)
    start = 0
    for name, shape in zip(bucket.names, map(torch.Size, bucket.shapes), strict=True):
        yield place_in_bucket(name, shape, dtype, start)
        start += shape.numel() * dtype.itemsize
