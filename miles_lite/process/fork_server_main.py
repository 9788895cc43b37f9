"""Forks commands of Python from a process that has imported what they import.

    python -P fork_server_main.py MODULE...

It prints the path of a Unix socket. Who connects to it sends what to run as one line of JSON, and is its owner: the
connection stands for the pipes between the two, and for what the kernel tells a parent. An empty line says that the
command is to be executed instead: under its environment an import would have made something else.

Of a `Request` the command is forked, with the files that came along for its output. It answers with its pid, and ends
with its owner.
Of a `GuardedRequest` a guard (engine/server_guard.py) is forked, and answers "GUARD SERVER", two pids, and "CODE", the
exit code, once no process of the server is left; when its owner sends no more, it ends the server.

Invariant: this process has one thread, runs nothing but imports, and ends with the thread that started it. What it
forks shows its own environment and command, as if they had been executed. It stands alone: of miles_lite it runs
scratch.py and the guard's file.
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
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import NoReturn, TypedDict

SCRATCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scratch.py")
DECIDING = ("CUDA_", "HF_", "LD_", "MKL_", "PYTHON", "SGLANG_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_")
"""Prefixes of the variables that decide what an import makes."""
HEEDED_LATER = ("PYTHONBREAKPOINT", "PYTHONUNBUFFERED", "SGLANG_EXTERNAL_MODEL_PACKAGE", "TORCHINDUCTOR_CACHE_DIR")
"""Exceptions: Ray and torch set two of them in passing, and here all that SGLang serves is imported."""
PR_SET_PDEATHSIG, PR_SET_MM, PR_SET_MM_MAP = 1, 35, 14

libc = ctypes.CDLL(None)


class Request(TypedDict):
    """What to run, where and as whom. command: [python, "-m" or "-c", ...]."""

    command: list[str]
    env: dict[str, str]
    folder: str


class GuardedRequest(Request):
    """And what its guard needs to know. guard: the guard's file."""

    guard: str
    log: str
    grace: float
    secrets: list[str]


def main(modules: Sequence[str]) -> None:
    """Listen at once, so that whoever comes early waits; import; then fork until the end."""
    environment, shown = dict(os.environ), ProcessTitle()
    scratch = runpy.run_path(SCRATCH)
    folder = scratch["make"]()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
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
                exit_with(answer, connection, environment, shown)
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


def answer(connection: socket.socket, imported_under: Mapping[str, str], shown: ProcessTitle) -> int:
    """Be what is asked for; the exit code."""
    with connection:
        begun, outputs, *_ = socket.recv_fds(connection, 1, 2)
        with connection.makefile("rb") as owner:
            line = begun + owner.readline()
        if not line:
            return 1
        request = json.loads(line)
        if differing := deciding(request["env"], imported_under):
            print(f"to be executed, for its environment differs: {', '.join(differing)}", file=sys.stderr)
            connection.sendall(b"\n")
            return 1
        os.setsid()
        os.chdir(request["folder"])
        if "guard" in request:
            return guarded(request, connection, shown)
        return unguarded(request, connection, outputs, shown)


def unguarded(request: Request, connection: socket.socket, outputs: Sequence[int], shown: ProcessTitle) -> int:
    """Be the command itself, until its owner's end of the connection is closed."""
    redirect(outputs)
    shown.become(request["command"], request["env"])
    connection.sendall(f"{os.getpid()}\n".encode())

    def follow() -> None:
        connection.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()
    return run(request["command"][1:])


def guarded(request: GuardedRequest, connection: socket.socket, shown: ProcessTitle) -> int:
    """Be the command's guard."""
    guards = SimpleNamespace(**runpy.run_path(request["guard"]))
    shown.become([request["guard"], request["log"], "--", *request["command"]], request["env"])
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


def fork(command: Sequence[str], connection: socket.socket, shown: ProcessTitle, folder: str, written: int) -> int:
    """Run it in a process group of its own, with `folder` for its temp folder and its output to `written`; its pid."""
    above = os.getpid()

    def serve() -> int:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != above:
            return 1
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        connection.close()
        redirect((written, written))
        shown.become(command, os.environ | {"TMPDIR": folder})
        return run(command[1:])

    return os.fork() or exit_with(serve)


def redirect(outputs: Sequence[int]) -> None:
    """Read nothing, and write to these, which are closed under their own numbers."""
    with open(os.devnull, "rb") as nothing:
        for target, source in enumerate((nothing.fileno(), *outputs)):
            os.dup2(source, target)
    for source in set(outputs):
        os.close(source)


def run(arguments: Sequence[str]) -> int:
    """What `python ARGUMENTS` does; its exit code."""
    how, what, *rest = arguments
    sys.argv = [how, *rest]
    sys.path.insert(0, os.getcwd())
    try:
        if how == "-m":
            sys.modules.pop(what, None)  # runpy warns of a module that the server has imported
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


class ProcessTitle:
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
