"""A trainer that holds a model folder's weights and sends them as a train rank does."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from miles_lite.weights.bucket import Bucket
from miles_lite.weights.sender import Sender
from miles_lite.weights.sending_actor import SendingActor


class FolderTrainer(SendingActor):
    """A Ray actor. `device` is where its buckets lie."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(host="127.0.0.1", device=torch.device(device))

    def load(self, folder: str, bucket_bytes: int) -> list[Bucket]:
        state = load_file(Path(folder, "model.safetensors"))
        return self.send(
            Sender(state, lambda names: map(state.__getitem__, names), device=self._device, bucket_bytes=bucket_bytes)
        )
