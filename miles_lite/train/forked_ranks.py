"""CPU ranks are forked from a process that has imported what they import: they start in two seconds, not in seven. What
they would refuse of their models is found out in such a fork, too.

Invariant: it is there for ranks on CPUs alone, and for clusters that this process starts: elsewhere Ray starts its
workers itself, and this process looks at the models.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from miles_lite.config.choices import Device
from miles_lite.config.options import Config
from miles_lite.errors import UserError
from miles_lite.process.fork_client import forked
from miles_lite.process.fork_server import forking

FORK_SERVER = "MILES_LITE_RANK_FORK_SERVER"
"""An environment variable: the socket of a fork server of ranks."""
MODULES = (
    "miles_lite.train.building",
    "miles_lite.train.checkpoint",
    "miles_lite.train.model_rules",
    "miles_lite.train.profiling",
    "miles_lite.weights.sender",
    "transformers.models.auto.modeling_auto",
)
LOG = "rank-fork-server.log"
CHECK_SECONDS = 300.0
"""How long a look at the models may take there."""


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


def check_models(config: Config) -> None:
    """What ranks would refuse of their models. Raises UserError."""
    at = os.environ.get(FORK_SERVER, "")
    with tempfile.TemporaryDirectory(prefix="miles_lite-") as folder:
        given, verdict = Path(folder, "config"), Path(folder, "verdict")
        given.write_bytes(pickle.dumps(config))
        command = [sys.executable, "-m", "miles_lite.train.model_rules", str(given), str(verdict)]
        if at and forked(at, command, os.environ, seconds=CHECK_SECONDS) and verdict.is_file():
            if flaw := verdict.read_text(encoding="utf-8"):
                raise UserError(flaw)
            return
    from miles_lite.train import model_rules  # late: with torch and transformers it takes seconds

    model_rules.check_models(config)
