"""Forks commands of Python from a process that has imported what they import.

    python -P fork_server_main.py MODULE...

It prints the path of a Unix socket. Who connects to it sends a `Request` as one line of JSON. A guard (server_guard.py)
is forked for it: the connection stands for the pipes between a guard and its owner, and for what the kernel tells a
parent. The guard answers "GUARD SERVER", two pids, and "CODE", the exit code, once no process of the server is left;
when its owner sends no more, it ends the server. An empty line says that the command is to be executed instead: under
its environment an import would have made something else.

Invariant: this process has one thread, runs nothing but imports, and ends with the thread that started it. What it
forks shows its own environment and command, as if they had been executed. It stands alone: of miles_lite it runs
server_guard.py.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import NoReturn, TypedDict

GUARD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server_guard.py")
DECIDING = ("CUDA_", "HF_", "LD_", "MKL_", "PYTHON", "SGLANG_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_")
"""Prefixes of the variables that decide what an import makes."""
HEEDED_LATER = ("PYTHONBREAKPOINT", "PYTHONUNBUFFERED", "SGLANG_EXTERNAL_MODEL_PACKAGE", "TORCHINDUCTOR_CACHE_DIR")
"""Exceptions: Ray and torch set two of them in passing, and here all that SGLang serves is imported."""
PR_SET_MM, PR_SET_MM_MAP = 35, 14

libc = ctypes.CDLL(None)
guards = SimpleNamespace(**runpy.run_path(GUARD))


class Request(TypedDict):
    """What to run, where and as whom, and what a guard needs to know. command: [python, "-m" or "-c", ...]."""

    command: list[str]
    env: dict[str, str]
    folder: str
    log: str
    grace: float
    secrets: list[str]


def main(modules: Sequence[str]) -> None:
    """Listen at once, so that whoever comes early waits; import; then fork until the end."""
    environment, shown = dict(os.environ), Shown()
    scratch = runpy.run_path(guards.SCRATCH)
    folder = scratch["make"]()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc.prctl(guards.PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.ExitStack() as ending:
        ending.callback(scratch["remove"], folder)
        listener = ending.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path := os.path.join(folder, "socket"))
        listener.listen(64)
        print(path, flush=True)  # which fails where the owner is gone already
        gc.disable()
        for module in modules:
            importlib.import_module(module)
        gc.collect()
        gc.freeze()
        gc.enable()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for them
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                for number in (signal.SIGCHLD, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                listener.close()
                exit_with(guard, connection, environment, shown)
            connection.close()


def exit_with(run: Callable[..., int], *args: object) -> NoReturn:
    """End a process that was forked: nothing that its parent has under way is to be ended twice."""
    code = 1
    try:
        code = run(*args)
    except BaseException:  # noqa: BLE001 - as the interpreter itself does at its end
        traceback.print_exc()
    finally:
        os._exit(code)


def guard(connection: socket.socket, imported_under: Mapping[str, str], shown: Shown) -> int:
    """Be the guard of what is asked for; the exit code."""
    os.setsid()
    with connection, connection.makefile("r", encoding="utf-8") as owner:
        line = owner.readline()
        if not line:
            return 1
        request: Request = json.loads(line)
        if differing := deciding(request["env"], imported_under):
            print(f"to be executed, for its environment differs: {', '.join(differing)}", file=sys.stderr)
            connection.sendall(b"\n")
            return 1
        os.chdir(request["folder"])
        shown.become([GUARD, request["log"], "--", *request["command"]], request["env"])
        try:
            code: int = guards.guard(
                connection.fileno(),
                lambda pid: connection.sendall(f"{os.getpid()} {pid}\n".encode()),
                functools.partial(fork, request["command"], connection, shown),
                log_path=request["log"],
                grace=request["grace"],
                secrets=[secret.encode() for secret in request["secrets"]],
            )
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        with contextlib.suppress(OSError):  # nobody may be there
            connection.sendall(f"{code}\n".encode())
        return code


def deciding(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The variables in which they differ, of those that decide what an import makes."""
    differing = (name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))
    return [name for name in differing if name.startswith(DECIDING) and name not in HEEDED_LATER]


def fork(command: Sequence[str], connection: socket.socket, shown: Shown, folder: str, written: int) -> int:
    """Run it in a process group of its own, with `folder` for its temp folder and its output to `written`; its pid."""
    above = os.getpid()

    def serve() -> int:
        os.setpgid(0, 0)
        libc.prctl(guards.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != above:
            return 1
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        connection.close()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (written, 1), (written, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(written)
        shown.become(command, os.environ | {"TMPDIR": folder})
        return run(command[1:])

    return os.fork() or exit_with(serve)


def run(arguments: Sequence[str]) -> int:
    """What `python ARGUMENTS` does; its exit code."""
    how, what, *rest = arguments
    sys.argv = [how, *rest]
    sys.path.insert(0, os.getcwd())
    try:
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    return 0


class Shown:
    """What /proc shows of this process, and of what is forked from it: command and environment."""

    def __init__(self) -> None:
        import setproctitle

        self._title = setproctitle.setproctitle
        self._title(" ".join(sys.argv))  # it looks for the area while the environment still lies there
        self._area = [int(field) for field in _stat(48, 51)]
        self._buffer = ctypes.create_string_buffer(1)

    def become(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Have this environment, in all that this process asks of it, and show both."""
        env = dict(env)
        os.environ.clear()
        os.environ.update(env)
        tempfile.tempdir = None
        if "torch" in sys.modules and (threads := env.get("OMP_NUM_THREADS")):
            sys.modules["torch"].set_num_threads(int(threads))
        title = " ".join(command)
        self._title(title)
        self._show(len(os.fsencode(title)), "".join(f"{name}={value}\0" for name, value in env.items()))

    def _show(self, title: int, environment: str) -> None:
        """The first so many bytes of the area, and this. As prctl(2) says of PR_SET_MM_MAP; where the kernel does not
        know it, the first environment stays."""
        encoded = os.fsencode(environment)
        self._buffer = ctypes.create_string_buffer(encoded, len(encoded))
        at, (start, end) = ctypes.addressof(self._buffer), self._area
        texts = (start, min(start + title + 1, end), at, at + len(encoded))
        start_code, end_code, start_stack = _stat(26, 27, 28)
        start_data, end_data, start_brk = _stat(45, 46, 47)
        libc.sbrk.restype = ctypes.c_void_p
        brk = libc.sbrk(0)
        fields = (start_code, end_code, start_data, end_data, start_brk, brk, start_stack)
        no_auxv = (0, (2**32 - 1) << 32)  # a pointer; its size, and in the upper half no file
        layout = (ctypes.c_uint64 * 13)(*fields, *texts, *no_auxv)
        libc.prctl(PR_SET_MM, PR_SET_MM_MAP, ctypes.byref(layout), ctypes.c_long(ctypes.sizeof(layout)), 0)


def _stat(*fields: int) -> list[int]:
    """Fields of /proc/self/stat by their numbers in proc(5)."""
    with open("/proc/self/stat") as stat:
        after_name = stat.read().rpartition(")")[2].split()
    return [int(after_name[field - 3]) for field in fields]


if __name__ == "__main__":
    main(sys.argv[1:])
