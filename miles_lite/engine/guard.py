"""Stands between an owner and its server, so that no process of the server outlives the owner, however it ends.

    python guard.py LOG GRACE -- COMMAND...

Invariant: this process exits only when no descendant of it is left. It runs COMMAND in a process group of its own with
its output appended to LOG, prints the command's pid, and ends the group (SIGTERM to the command, which may end its
children in order; after GRACE seconds SIGKILL to all) when its stdin closes, which the kernel does when the owner dies,
when it gets SIGTERM, or when COMMAND exits by itself.
As a child subreaper it inherits, and ends, orphans that left the group; what they left in shared memory it removes. It
imports nothing of miles_lite.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(log_path: str, grace: float, command: list[str]) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with open(log_path, "ab", buffering=0) as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    try:
        print(server.pid, flush=True)
        select.select([sys.stdin, os.pidfd_open(server.pid)], [], [])
        code = server.poll() or 0
        return code if code >= 0 else 128 - code
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.terminate()
        end_descendants(server.pid, grace)


def end_descendants(group: int, grace: float) -> None:
    """Return when no child is left; those that live after `grace` seconds, and the whole group, get SIGKILL."""
    deadline = time.monotonic() + grace
    while _has_children():
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _has_children() -> bool:
    """Reap whatever has ended; True while a child lives."""
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            remove_shared_memory(pid)
    except ChildProcessError:
        return False
    return True


def remove_shared_memory(pid: int) -> None:
    """SGLang names its segments after the process that made them, which removes them only when it is not killed."""
    for segment in glob.glob(f"/dev/shm/sgl_shm_*_{pid}_*"):
        with contextlib.suppress(OSError):
            os.unlink(segment)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[4:]))
