"""Runs one script after another for its owner and answers only when nothing of the script is left.

    python script_guard.py     requests on stdin, answers on stdout, one at a time

A request is a line of JSON (`argv`, `cwd`, `env`, `timeout`, `grace`, `keep`, `sandboxed`, `script_bytes`) followed by
the script; an answer is a line of JSON. Bytes of output travel as Latin-1 text.

Invariant: between two answers this process has no descendant. As a child subreaper it inherits processes that left
their session or lost their parent, so all that a script starts can be found and ended. When stdin closes, which the
kernel does when the owner dies, everything ends. It imports nothing of miles_lite.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TIMED_OUT = 124
KILLED = 128 + signal.SIGKILL
NOT_STARTED = 126
KILL_SECONDS = 5.0
"""How long SIGKILL is repeated; what outlives it sits in the kernel."""
MOST_PROCESSES = 512
"""Of one script at once: one that has more, such as a fork bomb, is ended while they can be found."""
LOOK_SECONDS = 0.25
"""How often they are counted."""

LIBC = ctypes.CDLL(None)


class OwnerGone(Exception):
    """stdin was closed while a script ran."""


class TooManyProcesses(Exception):
    """A script has more than MOST_PROCESSES."""


class Pipe:
    """The end of a pipe that is read to its end, of which the first `keep` bytes are kept."""

    def __init__(self, descriptor: int, keep: int) -> None:
        self.descriptor, self.keep = descriptor, keep
        self.head, self.total, self.open = bytearray(), 0, True
        os.set_blocking(descriptor, False)

    def drain(self) -> None:
        """Read what is there, at most a pipe's capacity or so, so that a fast writer stops nobody."""
        for _ in range(16):
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return
            if not data:
                self.open = False
                return
            self.total += len(data)
            self.head += data[: self.keep - len(self.head)]


class Children:
    """Whatever descends from this process; `status` is the wait status of `main`, None while it lives."""

    def __init__(self, main: int, *, sandboxed: bool) -> None:
        self.main = main
        self.status: int | None = None
        self._spared = {main} if sandboxed else set()

    def reap(self) -> bool:
        """Collect what has ended; True while a child lives."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self.main:
                    self.status = status
        except ChildProcessError:
            return False

    def end(self, grace: float, pipes: list[Pipe]) -> bool:
        """SIGTERM, then after `grace` seconds SIGKILL, to all; True when none is left.

        bubblewrap itself is spared the SIGTERM: its end would kill the sandbox at once.
        """
        if not self.reap():
            return True
        for pid in descendants():
            if pid not in self._spared:
                send(pid, signal.SIGTERM)
                send(pid, signal.SIGCONT)
        kill_at = time.monotonic() + grace
        while self.reap():
            now = time.monotonic()
            if now > kill_at + KILL_SECONDS:
                return False
            if now > kill_at:
                kill(descendants())
            for pipe in pipes:
                pipe.drain()
            time.sleep(0.002)
        return True


def main() -> int:
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        script = sys.stdin.buffer.read(request["script_bytes"])
        try:
            answer = run(request, script)
        except OwnerGone:
            return 0
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0


def run(request: dict[str, Any], script: bytes) -> dict[str, Any]:
    """Run `argv` with the script's path behind it. `exit_code` is 128 + n after signal n, as shells have it."""
    began = time.monotonic()
    with open(os.memfd_create("script", 0), "wb") as file:
        file.write(script)
        file.flush()
        try:
            process = subprocess.Popen(
                [*request["argv"], f"/dev/fd/{file.fileno()}"],
                cwd=request["cwd"],
                env=request["env"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(file.fileno(),),
                start_new_session=True,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except OSError as error:
            return {"stdout": "", "stderr": str(error), "cut": [0, 0], "exit_code": NOT_STARTED, "seconds": 0.0}
    with process.stdout, process.stderr:  # type: ignore[union-attr]
        pipes = [Pipe(stream.fileno(), request["keep"]) for stream in (process.stdout, process.stderr)]  # type: ignore[union-attr]
        children = Children(process.pid, sandboxed=request["sandboxed"])
        crowded = ended = False
        try:
            ended = wait(process.pid, pipes, began + request["timeout"])
        except TooManyProcesses:
            crowded = True
        finally:
            gone = children.end(0.0 if crowded else request["grace"], pipes)
        for pipe in pipes:
            pipe.drain()
    process.returncode = 0  # reaped above
    if crowded:
        code = KILLED
    else:
        code = TIMED_OUT if not ended or children.status is None else os.waitstatus_to_exitcode(children.status)
    return {
        "stdout": pipes[0].head.decode("latin-1"),
        "stderr": pipes[1].head.decode("latin-1"),
        "cut": [pipe.total - len(pipe.head) for pipe in pipes],
        "exit_code": code if code >= 0 else 128 - code,
        "timed_out": not ended and not crowded,
        "crowded": MOST_PROCESSES if crowded else 0,
        "left_running": not gone,
        "seconds": time.monotonic() - began,
    }


def wait(pid: int, pipes: list[Pipe], deadline: float) -> bool:
    """Drain the pipes until the process ends (True) or time is up (False). Raises OwnerGone, TooManyProcesses."""
    look_at = time.monotonic() + LOOK_SECONDS
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(0, 0)
        poll.register(pidfd, select.POLLIN)
        for pipe in pipes:
            poll.register(pipe.descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if time.monotonic() > look_at:
                if len(descendants()) > MOST_PROCESSES:
                    raise TooManyProcesses
                look_at = time.monotonic() + LOOK_SECONDS
            ready = dict(poll.poll(min(left, LOOK_SECONDS) * 1000))
            if 0 in ready:
                raise OwnerGone
            if pidfd in ready:
                return True
            for pipe in pipes:
                if pipe.descriptor in ready:
                    pipe.drain()
                    if not pipe.open:
                        poll.unregister(pipe.descriptor)
        return False
    finally:
        os.close(pidfd)


def descendants() -> list[int]:
    """Every process below this one, those nearest first."""
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        parent = queue.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as children:
                    new = [int(pid) for pid in children.read().split()]
                    found += new
                    queue += new
    return found


def kill(pids: list[int]) -> None:
    """Groups first: the kernel ends one whole, also where it forks faster than anybody could count."""
    groups = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(pid))
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for pid in pids:
        send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
