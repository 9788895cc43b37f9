"""Whether a machine can have GPUs, known without torch, which takes seconds to import."""

from __future__ import annotations

import ctypes
from pathlib import Path

NVIDIA, AMD = "libnvidia-ml.so.1", Path("/dev/kfd")
"""What comes with a driver: the library that Ray counts NVIDIA's GPUs with, and the device of AMD's."""


def has_gpu_driver() -> bool:
    """False where torch and Ray find no GPU; True where they may."""
    try:
        ctypes.CDLL(NVIDIA)
    except OSError:
        return AMD.exists()
    return True
