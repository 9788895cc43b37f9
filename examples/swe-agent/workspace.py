"""A throw-away copy of a task's git repository, commands that run in it, and the hidden tests.

Invariant: code that a model wrote or edited runs only in child processes of their own session, with a time limit and a
minimal environment; when a command ends, its process group is killed; when the workspace closes, its folder is gone,
and when this process ends in whatever way, so are all of them. With bubblewrap (`bwrap`) installed a command also sees
nothing of the machine but its system folders (read-only) and the copy, has no network, and cannot leave a process
behind in another session.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from miles_lite.sandboxes.bubblewrap import PYTHON, View

MAX_OUTPUT = 8192
"""Bytes of a command's output that are kept."""

MAX_COMMAND = 100_000
"""Bytes of a command; Linux takes 128 KiB per argument."""

LIMITS = b"{ ulimit -c 0; ulimit -f 16384; ulimit -v 4194304; } 2>&-\n"
"""Before every command: no core files, files up to 16 MiB, 4 GiB of memory (or less, where the machine says so)."""
SEEN = ("/usr", "/bin", "/lib", "/lib64", "/etc", *PYTHON)
"""Folders of this machine that a command sees under bubblewrap."""

_HOME_LOCK = threading.Lock()


@dataclass(frozen=True)
class Result:
    """`returncode` is -9 with `timed_out` when the limit stopped it."""

    output: str
    returncode: int
    timed_out: bool


class Workspace:
    """A copy of the repository `files` (path -> text) with one commit; as a context manager it removes its folder."""

    def __init__(self, files: Mapping[str, str]) -> None:
        repository = _repository(tuple(sorted(files.items())))
        with _HOME_LOCK:
            home = _home().folder
        self.root = Path(tempfile.mkdtemp(dir=home))
        for path, content in repository:
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def bash(self, command: str, *, timeout: float) -> Result:
        """Run a shell command in the copy; stdout and stderr together.

        A command that the system would not take (it holds a NUL byte or is too long) fails with status 126.
        """
        script = command.encode("utf-8", "replace")
        if b"\0" in script or len(script) > MAX_COMMAND:
            return Result("a command has no NUL byte and is not longer than 100 kB\n", 126, timed_out=False)
        return _run(script, cwd=self.root, stdin=b"", timeout=timeout)

    def passes(self, tests: str, *, timeout: float) -> bool:
        """Whether Python source `tests` runs to its end in an isolated interpreter whose path starts with the copy.

        The tests reach the interpreter through stdin, so they are in no file and no argument list; a secret that it
        prints after them tells a real end from code that exits early with status 0.
        """
        secret = secrets.token_hex(8)
        script = f"import sys\nsys.path.insert(0, '.')\n{tests}\nprint('\\n{secret}')\n"
        python = f"exec {shlex.quote(sys.executable)} -I -S -B -"
        result = _run(python.encode(), cwd=self.root, stdin=script.encode(), timeout=timeout)
        return result.returncode == 0 and result.output.rstrip().endswith(secret)


def _run(command: bytes, *, cwd: Path, stdin: bytes, timeout: float) -> Result:
    with _memory_file("stdin") as source, _memory_file("output") as sink:
        os.write(source, stdin)
        os.lseek(source, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [*_wrapper(str(cwd)), "bash", "-c", LIMITS + command],
            cwd=cwd,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"},
            stdin=source,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = _wait(process.pid, timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output = os.pread(sink, MAX_OUTPUT, 0).decode("utf-8", errors="replace")
    return Result(output, process.returncode, timed_out=not ended)


@contextlib.contextmanager
def _memory_file(name: str) -> Iterator[int]:
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _wait(pid: int, timeout: float) -> bool:
    """Wait for a child without reaping it, so that its process group id stays ours; False when time ran out."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(timeout * 1000))
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Home:
    """Where this process's copies are; `guard` waits for a pipe to close with this process, then removes the folder."""

    folder: str
    guard: subprocess.Popen[bytes]


@lru_cache(maxsize=1)
def _home() -> _Home:
    """The guard is a grandchild: Ray kills the children of a worker that it ends."""
    folder = tempfile.mkdtemp(prefix="swe-agent-")
    guard = subprocess.Popen(
        ["sh", "-c", 'exec 3<&0; (cat <&3; rm -rf -- "$0") & exit 0', folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    guard.wait(timeout=60)
    return _Home(folder, guard)


@lru_cache(maxsize=1)
def sandboxed() -> bool:
    """Whether bubblewrap works here."""
    flaw = View(begins="/", shown=SEEN).flaw()
    if flaw is not None:
        logging.getLogger(__name__).warning("commands run without bubblewrap: %s", flaw)
    return flaw is None


def _wrapper(root: str) -> list[str]:
    return View(begins=root, empty=("/tmp",), shown=SEEN, writable=root).command if sandboxed() else []


@lru_cache(maxsize=256)
def _repository(files: tuple[tuple[str, str], ...]) -> tuple[tuple[str, bytes], ...]:
    """Every file of a git repository with one commit of `files`, .git included. Made once per task."""
    date = "2026-01-01T00:00:00Z"
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{who}_{what}": "dev" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env |= {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    with tempfile.TemporaryDirectory(prefix="swe-agent-repository-") as folder:
        for path, text in files:
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        for arguments in (
            ("init", "-q", "-b", "main", "--template="),
            ("add", "-A"),
            ("commit", "-q", "--allow-empty", "-m", "Start"),
        ):
            subprocess.run(["git", *arguments], cwd=folder, env=env, check=True, timeout=60, capture_output=True)
        everything = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return tuple((str(path.relative_to(folder)), path.read_bytes()) for path in everything)
