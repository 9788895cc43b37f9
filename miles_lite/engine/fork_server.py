"""The owner's side of a fork server (fork_server_main.py): CPU engines start in a second, not in eight.

Invariant: it is there for engines of the CPU profile alone, whose processes are forked anyway; whoever does not find it
executes its server. It ends with its block, and with the thread that entered it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from miles_lite.config.choices import Device
from miles_lite.config.places import Topology
from miles_lite.engine.cpu_shim import needs_profile
from miles_lite.engine.launch import environment
from miles_lite.engine.server_process import FORK_SERVER
from miles_lite.engine.spec import EngineSpec
from miles_lite.process import scratch

MAIN = Path(__file__).with_name("fork_server_main.py")
MODULES = ("sglang.launch_server", "sglang.srt.entrypoints.http_server", "sglang.srt.managers.scheduler")
END_SECONDS = 5.0
LOG = "fork-server.log"


@contextlib.contextmanager
def forking(device: Device, topology: Topology, logs: Path) -> Iterator[None]:
    """Engines that are started in the block, by whoever inherits this environment, are forked, unless they already are.
    What the imports say is in the folder `logs`."""
    if os.environ.get(FORK_SERVER) or topology.rollout_external_engine_addrs or not needs_profile(device):
        yield
        return
    # One thread, also of what counts its threads while it is imported: an engine sets its own number.
    imports = EngineSpec(index=0, model_path="", device=device, log_path="", threads=1)
    env = environment(imports, os.environ, profile=True) | {"TMPDIR": scratch.lasting()}
    with fork_server(MODULES, env, logs / LOG) as at:
        os.environ[FORK_SERVER] = at
        try:
            yield
        finally:
            os.environ.pop(FORK_SERVER, None)


@contextlib.contextmanager
def fork_server(modules: tuple[str, ...], env: Mapping[str, str], log: Path) -> Iterator[str]:
    """The socket of one that has imported `modules`, or is about to."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", str(MAIN), *modules],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().rstrip("\n")
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        process.kill()
        process.wait()
        process.stdout.close()
