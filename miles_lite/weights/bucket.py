"""What trainer and engines tell each other about weights: an update, its buckets, where they meet.

Invariant: a bucket's tensors lie one behind the other, without gaps, in the order of `names`; they have one dtype, so
that each is aligned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miles_lite.config.choices import PauseMode

GROUP_TIMEOUT = 60.0
"""Seconds the trainer waits for engines to join its group, and for one bucket to be received."""


def memory() -> str:
    """Names the shared memory of this machine, or of this container: who gets the same answer can open the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{os.stat('/dev/shm').st_dev}"


@dataclass(frozen=True)
class Bucket:
    """Tensors that travel together. `dtype` is torch's name without `torch.`."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str


@dataclass(frozen=True)
class WeightUpdate:
    """New weights: the Hugging Face folder that holds them, or will; the version that responses carry from then on;
    what requests in flight do; and the buckets they come in when they do not come from the folder.

    retract   they wait and recompute their cache with the new weights
    in_place  they go on with the cache they have; later requests reuse it too, where their prefix is cached
    abort     they end early, finish reason "abort"
    """

    path: str
    version: int
    pause_mode: PauseMode = PauseMode.RETRACT
    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True)
class Meeting:
    """Where the trainer, rank 0, and the engines' ranks meet: a TCP store and the group's name in it."""

    host: str
    port: int
    name: str
    backend: Literal["gloo", "nccl"]
    world_size: int
