"""Processes as tests look at them. Any of them may end meanwhile: it then shows nothing, and is not found."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """Its command line."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def command_of(process: psutil.Process) -> str:
    """Its command line, joined by spaces."""
    return " ".join(words_of(process))


def variables_of(process: psutil.Process) -> dict[str, str]:
    """Its environment."""
    with contextlib.suppress(psutil.Error):
        return process.environ()
    return {}


def running(process: psutil.Process) -> bool:
    """Whether it runs: a zombie does not, although its number is still taken."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def runs(pid: int) -> bool:
    return any(map(running, tree_of(pid)[:1]))


def running_after(processes: Iterable[psutil.Process], *, seconds: float = 20.0) -> list[psutil.Process]:
    """Those that have not ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := list(filter(running, processes))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Those that have not ended yet."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def below(pid: int) -> list[psutil.Process]:
    """All that the process has started, however deep."""
    return tree_of(pid)[1:]


def above(process: psutil.Process) -> list[psutil.Process]:
    """What has started it, the nearest first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.parents()
    return []


def mapped_by(process: psutil.Process) -> list[str]:
    """The files it has mapped into its memory."""
    with contextlib.suppress(psutil.Error):
        return [each.path for each in process.memory_maps()]
    return []


def others() -> Iterator[psutil.Process]:
    """Every process but this one."""
    return (process for process in psutil.process_iter() if process.pid != os.getpid())


def called(words: str) -> list[psutil.Process]:
    """Those whose command line holds `words`."""
    return [process for process in others() if words in command_of(process)]
