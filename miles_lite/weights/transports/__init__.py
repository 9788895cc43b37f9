"""The ways that weights go from the trainer to engines: one module each, and one line in TRANSPORTS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from miles_lite.config.choices import TransferMode
from miles_lite.weights.delivery import Transport
from miles_lite.weights.transports.disk import Disk
from miles_lite.weights.transports.distributed import Distributed
from miles_lite.weights.transports.tensor import SharedMemory

TRANSPORTS: Mapping[TransferMode, Callable[[], Transport]] = {
    TransferMode.DISK: Disk,
    TransferMode.TENSOR: SharedMemory,
    TransferMode.DISTRIBUTED: Distributed,
}
"""By the name that --update-weight-transfer-mode takes."""
