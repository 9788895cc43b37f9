"""A look into some training steps of a rank: a trace of what ran when, and a history of what took memory.

Invariant: outside of these steps nothing is recorded. A file is written when its last step ends, or the rank does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from miles_lite.config.debugging import Debugging

log = logging.getLogger(__name__)

ENTRIES = 1_000_000
"""Allocations that a history holds; the oldest are forgotten."""


class Recorder:
    """Records the steps that options choose. `folder`: where files go that have no other place."""

    def __init__(self, options: Debugging, *, rank: int, device: torch.device, folder: Path) -> None:
        self._options, self._device, self._wanted = options, device, options.records(rank)
        self._trace = folder / f"trace_rank_{rank:05d}.json.gz"
        snapshot = Path(options.memory_snapshot_path or folder / "memory.pickle")
        self._snapshot = snapshot.with_stem(f"{snapshot.stem}_rank_{rank:05d}")
        self._running = contextlib.ExitStack()
        self._begun = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Training step `number` runs."""
        start, end = self._options.profile_step_start, self._options.profile_step_end
        if self._wanted and not self._begun and start <= number < end:
            self._begin()
        yield
        if number + 1 >= end:
            self.close()

    def close(self) -> None:
        """Write what was recorded, if anything is that was not written."""
        self._running.close()

    def _begin(self) -> None:
        self._begun = True
        if self._options.use_pytorch_profiler:
            self._running.enter_context(traced(self._trace, self._device))
        if self._options.record_memory_history:
            self._running.enter_context(remembered(self._snapshot))


@contextlib.contextmanager
def traced(file: Path, device: torch.device) -> Iterator[None]:
    """Write what runs meanwhile in Chrome's trace format, as chrome://tracing and Perfetto read it."""
    kernels = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *kernels], record_shapes=True) as recorded:
        yield
    file.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(file))
    log.info("trace: %s", file)


@contextlib.contextmanager
def remembered(file: Path) -> Iterator[None]:
    """Write what takes CUDA memory meanwhile, as pytorch.org/memory_viz reads it."""
    torch.cuda.memory._record_memory_history(max_entries=ENTRIES)
    yield
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(file))  # type: ignore[no-untyped-call]
    torch.cuda.memory._record_memory_history(enabled=None)
    log.info("memory history: %s", file)
