"""From the claim of a run's folder to its end.

Invariant: whatever ends a run (its last step, an error, Ctrl-C, SIGTERM), nothing it started keeps running, and what it
last saved is complete.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from miles_lite.config.options import Config
from miles_lite.config.places import Topology
from miles_lite.config.rules import refuse_broken
from miles_lite.errors import RunLostError
from miles_lite.job.claim import claimed
from miles_lite.job.watch import Watch, death_in
from miles_lite.process.post_mortem import obituary, out_of_memory_kills
from miles_lite.process.stopping import DEAF_SECONDS, HASTE_SECONDS, INTERRUPTED, Interrupts, ends_within
from miles_lite.stack.cluster import connect, disconnect
from miles_lite.stack.placement import Layout, place

log = logging.getLogger(__name__)

END_SECONDS = 25.0
"""How long the end of a run may take in all, with bounds of its own for its parts."""


@dataclass
class Reached:
    """How far a run has come: the last rollouts that were trained and saved, and how many there are to be."""

    trained: int | None = None
    saved: int | None = None
    of: int | None = None


class Lifetime:
    """What a run has started, in `parts`, each ended before those that were there before it; `unhurried` is what takes
    as long as it takes at the end, unless a person wants it to end. A context manager."""

    def __init__(self, config: Config, interrupts: Interrupts) -> None:
        self._config, self._interrupts = config, interrupts
        self._killed_before = out_of_memory_kills()
        self._ray_logs: Path | None = None
        self.began = time.time()
        self.watch = Watch(interrupts, hint=f"see {config.run_dir}/logs and Ray's dashboard")
        self.reached = Reached()
        self.parts = contextlib.ExitStack()
        self.unhurried = contextlib.ExitStack()
        self.say: Callable[[str], None] = log.warning
        """Tells a person one line."""

    def connect(self, topology: Topology, *, train: bool) -> Layout:
        """Join Ray and take the slots, with those of trainers or without. Raises UserError."""
        self._interrupts.check()
        self._interrupts.deaf = DEAF_SECONDS
        self.parts.callback(disconnect)
        self._ray_logs = connect(self._config.cluster.ray_address)
        layout = place(topology, train=train)
        self.parts.callback(layout.remove)
        refuse_broken(self._config.on_device(layout.device) if train else [])
        self._config.write()
        return layout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = self._obituary(error)
        interrupted = isinstance(error, KeyboardInterrupt)
        if not interrupted:
            self.unhurried.close()
        with ends_within(END_SECONDS, INTERRUPTED if interrupted else 1):
            self.parts.__exit__(kind, error, trace)
            self.unhurried.close()
        if lost is not None:
            raise RunLostError(lost) from error

    def _obituary(self, error: BaseException | None) -> str | None:
        """What is to be said of the death that ended the run, if one did."""
        if (died := death_in(error)) is None:
            return None
        at = self.reached
        step = f"Step {1 if at.trained is None else at.trained + 2} of {at.of or '?'}"
        saved = (self._config.checkpoint.save, at.saved)
        return obituary(died, logs=self._ray_logs, killed_before=self._killed_before, lost=step, saved=saved)


@contextlib.contextmanager
def lifetime(config: Config) -> Iterator[Lifetime]:
    """A run's. Raises UserError for a run folder that cannot be made, or that another run is using."""
    with claimed(config.run_dir), Interrupts(deaf=HASTE_SECONDS) as interrupts, Lifetime(config, interrupts) as life:
        yield life
