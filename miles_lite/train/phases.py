"""Where a training step's time goes, on this rank.

Invariant: what a device was told in a phase is waited for at the phase's end, so that no phase pays for another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = (
    "fetch",
    "data_preprocess",
    "log_probs",
    "ref_log_probs",
    "teacher_log_probs",
    "actor_train",
    "forward_backward",
    "optimizer",
)
"""The last two are parts of `actor_train`."""


class Clock:
    """Seconds by phase; a phase may run several times."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """One of PHASES runs."""
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin

    def lap(self) -> dict[str, float]:
        """Of every phase, since the last lap; 0 of those that did not run."""
        seconds, self._seconds = self._seconds, {}
        return {phase: seconds.get(phase, 0.0) for phase in PHASES}
