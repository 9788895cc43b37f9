"""A trainer that holds a model folder's weights and sends them as TrainWorker does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from miles_lite.weights.bucket import Bucket, Meeting
from miles_lite.weights.sender import Group, Sender


class FolderTrainer:
    """A Ray actor. `device` is where its buckets lie."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)

    def load(self, folder: str, bucket_bytes: int) -> list[Bucket]:
        state: dict[str, Any] = load_file(Path(folder, "model.safetensors"))
        self._sender = Sender(state, device=self._device, bucket_bytes=bucket_bytes)
        return self._sender.buckets

    def share_bucket(self, index: int, copies: int) -> list[bytes]:
        return self._sender.share(index, copies=copies)

    def open_group(self, world_size: int) -> Meeting:
        self._group = Group(host="127.0.0.1", world_size=world_size, device=self._device)
        return self._group.meeting

    def join_group(self) -> None:
        self._group.join()

    def broadcast_bucket(self, index: int) -> None:
        self._sender.broadcast(index, self._group)

    def close_group(self) -> None:
        self._group.close()
