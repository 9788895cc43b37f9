"""Ray's workers on CPUs are forked from a process that has imported what they import: a rank starts in a second, not in
seven. What ranks would refuse of their models is found out in such a fork, too.

Invariant: it is there for jobs that train on CPUs alone, and for clusters that this process starts: elsewhere Ray
starts its workers itself, and this process looks at the models.
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
from miles_lite.stack.worker_start import FORK_SERVER

RANKS = (
    "miles_lite.train.building",
    "miles_lite.train.checkpoint",
    "miles_lite.train.model_rules",
    "miles_lite.train.profiling",
    "miles_lite.weights.sender",
    "transformers.models.auto.modeling_auto",
)
OTHERS = ("google.protobuf", "jsonschema", "miles_lite.rollout.rewards", "miles_lite.session.server", "requests")
"""But for Ray: it keeps of its environment what it found when it was imported."""
LOG = "worker-fork-server.log"
CHECK_SECONDS = 300.0
"""How long a look at the models may take there."""


@contextlib.contextmanager
def forking_workers(device: Device, logs: Path) -> Iterator[None]:
    """Workers that are started in the block, by whoever inherits this environment, are forked where ranks are on such a
    device. What the imports say is in the folder `logs`."""
    if device != "cpu":
        yield
        return
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # a rank sets its own number
    with forking(FORK_SERVER, (*RANKS, *OTHERS), one_thread, logs / LOG):
        yield


def check_models(config: Config) -> None:
    """What ranks would refuse of their models. Raises UserError."""
    at = os.environ.get(FORK_SERVER)
    verdict = _forked_verdict(at, config) if at else None
    if verdict is None:
        from miles_lite.train import model_rules  # late: with torch and transformers it takes seconds

        model_rules.check_models(config)
    elif verdict:
        raise UserError(verdict)


def _forked_verdict(at: str, config: Config) -> str | None:
    """What a fork of the server at this socket says against the models, nothing where all is well; None where none
    came to its end."""
    with tempfile.TemporaryDirectory(prefix="miles_lite-") as folder:
        given, verdict = Path(folder, "config"), Path(folder, "verdict")
        given.write_bytes(pickle.dumps(config))
        command = [sys.executable, "-m", "miles_lite.train.model_rules", str(given), str(verdict)]
        done = forked(at, command, os.environ, seconds=CHECK_SECONDS) and verdict.is_file()
        return verdict.read_text(encoding="utf-8") if done else None
