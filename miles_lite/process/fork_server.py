"""The owner's side of a fork server (fork_server_main.py): what imports much starts in a second, not in eight.

Invariant: whoever does not find it executes what it would have forked. It ends with its block, and with the thread that
entered it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from miles_lite.process import scratch

MAIN = Path(__file__).with_name("fork_server_main.py")
END_SECONDS = 5.0


@contextlib.contextmanager
def forking(variable: str, modules: tuple[str, ...], env: Mapping[str, str], log: Path) -> Iterator[None]:
    """The environment's `variable` names, to whoever inherits it in the block, a fork server of `modules`, imported
    under `env`, in a temp folder that outlives an attempt; the one that it has named before, if it has. What the
    imports say is in `log`."""
    if os.environ.get(variable):
        yield
        return
    with fork_server(modules, {**env, "TMPDIR": scratch.lasting()}, log) as at:
        os.environ[variable] = at
        try:
            yield
        finally:
            os.environ.pop(variable, None)


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
