"""CPU ranks are forked from a process that has imported what they import: they start in two seconds, not in seven.

Invariant: it is there for ranks on CPUs alone, and for clusters that this process starts: elsewhere Ray starts its
workers itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from miles_lite.config.choices import Device
from miles_lite.process.fork_server import forking

FORK_SERVER = "MILES_LITE_RANK_FORK_SERVER"
"""An environment variable: the socket of a fork server of ranks."""
MODULES = ("miles_lite.train.learner", "miles_lite.train.checkpoint", "transformers.models.auto.modeling_auto")
LOG = "rank-fork-server.log"


@contextlib.contextmanager
def forking_ranks(device: Device, logs: Path) -> Iterator[None]:
    """Ranks that are started in the block, by whoever inherits this environment, are forked. What the imports say is in
    the folder `logs`."""
    if device != "cpu":
        yield
        return
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # a rank sets its own number
    with forking(FORK_SERVER, MODULES, one_thread, logs / LOG):
        yield
