"""Stands between an owner and its server, so that no process of the server outlives the owner, however it ends.

    python server_guard.py LOG GRACE -- COMMAND...

Invariant: this process exits only when no descendant of it is left. It runs COMMAND in a process group of its own with
its output appended to LOG, which its owner alone can read, without the secrets that the first line of stdin lists (a
JSON array of texts). It prints the pid of COMMAND, and ends the group (SIGTERM to COMMAND, which may end its children
in order; after GRACE seconds SIGKILL to all) when its stdin closes, which the kernel does when the owner dies, when it
gets SIGTERM, or when COMMAND exits by itself.
As a child subreaper it inherits, and ends, orphans that left the group. What they left behind it removes: COMMAND's
temp folder, which is its own, and its segments of shared memory. Of miles_lite it runs scratch.py alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SCRATCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "process", "scratch.py")
LOOK_SECONDS = 1.0
LOADS = "/dev/shm/sglang_loads_"
HIDDEN = b"***"


def main(log_path: str, grace: float, command: list[str]) -> int:
    secrets = [secret.encode() for secret in json.loads(sys.stdin.buffer.readline() or b"[]")]
    start, tell = functools.partial(execute, command), functools.partial(print, flush=True)
    return guard(sys.stdin.fileno(), tell, start, log_path=log_path, grace=grace, secrets=secrets)


def execute(command: list[str], folder: str, written: int) -> int:
    """Start it in a process group of its own, with `folder` for its temp folder and output to `written`; its pid."""
    libc = ctypes.CDLL(None)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=written,
        stderr=subprocess.STDOUT,
        env=os.environ | {"TMPDIR": folder},
        process_group=0,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    return server.pid


def guard(
    owner: int,
    tell: Callable[[int], None],
    start: Callable[[str, int], int],
    *,
    log_path: str,
    grace: float,
    secrets: list[bytes],
) -> int:
    """Stand between whoever holds the other end of `owner` and the server that `start` starts, with a temp folder and a
    file descriptor for its output; `tell` takes the server's pid. Its exit code. Raises SystemExit for SIGTERM."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scratch = runpy.run_path(SCRATCH)
    folder = scratch["make"]()
    output, written = os.pipe()
    server = start(folder, written)
    os.close(written)
    handle = os.pidfd_open(server)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.fchmod(log, 0o600)
    logging = threading.Thread(target=copy_hiding, args=(output, log, secrets))
    logging.start()
    loads: set[str] = set()
    try:
        tell(server)
        while not select.select([owner, handle], [], [], None if loads else LOOK_SECONDS)[0]:
            loads |= load_segments(server)
            scratch["register"](folder, loads)
        ended = os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return 0 if ended is None else ended.si_status + (0 if ended.si_code == os.CLD_EXITED else 128)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        scratch["register"](folder, loads | load_segments(server))
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        end_descendants(server, grace)
        logging.join()  # nobody writes any more
        scratch["remove"](folder)


def load_segments(server: int) -> set[str]:
    """Where the schedulers of a server tell it their load: one file in shared memory, whose name says of nobody that it
    is his, and which nobody removes. So it is known from who has it mapped, while they live."""
    found = set()
    for pid in _with_descendants(server):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            found |= {line.split()[-1] for line in maps if LOADS in line and not line.endswith("(deleted)\n")}
    return found


def copy_hiding(source: int, target: int, secrets: list[bytes]) -> None:
    """Copy bytes as they come, but for `secrets`, also those that come in pieces."""
    held = b""
    while data := os.read(source, 1 << 16):
        text = held + data
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        begun = max((_overlap(text, secret) for secret in secrets), default=0)
        _write(target, text[: len(text) - begun])
        held = text[len(text) - begun :]
    _write(target, held)


def _overlap(text: bytes, secret: bytes) -> int:
    """Length of the longest end of `text` that begins `secret`."""
    return next((size for size in range(min(len(text), len(secret) - 1), 0, -1) if text.endswith(secret[:size])), 0)


def _write(target: int, data: bytes) -> None:
    """What a full disk does not take is lost: a server that waits for its log would serve nobody."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(target, data) :]


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


def _with_descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for tasks in glob.glob(f"/proc/{parent}/task/*/children"):
            with contextlib.suppress(OSError), open(tasks) as children:
                found += map(int, children.read().split())
    return found


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[4:]))
