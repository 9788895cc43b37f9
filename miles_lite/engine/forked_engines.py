"""CPU engines are forked from a process that has imported SGLang: they start in a second, not in eight.

Invariant: it is there for engines of the CPU profile alone, whose processes are forked anyway.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from miles_lite.config.choices import Device
from miles_lite.config.places import Topology
from miles_lite.engine.cpu_shim import needs_profile
from miles_lite.engine.launch import environment
from miles_lite.engine.server_process import FORK_SERVER
from miles_lite.engine.spec import EngineSpec
from miles_lite.process.fork_server import forking

MODULES = ("sglang.launch_server", "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler")
LOG = "fork-server.log"


@contextlib.contextmanager
def forking_engines(device: Device, topology: Topology, logs: Path) -> Iterator[None]:
    """Engines that are started in the block, by whoever inherits this environment, are forked. What the imports say is
    in the folder `logs`."""
    if topology.rollout_external_engine_addrs or not needs_profile(device):
        yield
        return
    # One thread, also of what counts its threads while it is imported: an engine sets its own number.
    imports = EngineSpec(index=0, model_path="", device=device, log_path="", threads=1)
    with forking(FORK_SERVER, MODULES, environment(imports, os.environ, profile=True), logs / LOG):
        yield
