"""What processes of this machine are at: the Python stacks of their threads, and of the processes that they started, as
py-spy sees them from outside, so that one that hangs in foreign code tells too.

Invariant: nothing here raises for a process that is gone, or a py-spy that is missing or may not look; each look has a
bound.
"""

from __future__ import annotations

import asyncio
import faulthandler
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

LOOK_SECONDS = 10.0
_COMMAND = re.compile(rb"(?ms)^((?:Parent )?Process \d+): .*?(?=^Parent Process|^Python v|^$)")
"""A command line, which may hold a key."""


def stacks_folder(logs: Path) -> Path:
    """Where those of this moment belong in a run's folder of logs."""
    return logs / f"stacks-{time.time():.0f}"


def _awaited(coroutine: object) -> Iterator[str]:
    """Where a coroutine waits, and what it waits for there, inwards; asyncio itself tells of the outermost alone."""
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        yield f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        coroutine = getattr(coroutine, "cr_await", None)


def write_stacks(
    folder: Path, pids: Mapping[str, int], *, own: str | None = None, loop: asyncio.AbstractEventLoop | None = None
) -> list[Path]:
    """A file in `folder` for each process by its name, and for this process by its `own`, with the tasks of its `loop`;
    those that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if own is not None:
        written.append(folder / f"{own}.txt")
        with written[0].open("w", encoding="utf-8") as stream:
            faulthandler.dump_traceback(stream)
            for task in asyncio.all_tasks(loop) if loop else ():
                print(f"\n{task.get_name()}:", *_awaited(task.get_coro()), sep="\n  ", file=stream)
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    for name, pid in pids.items() if program else ():
        look = [program or "", "dump", "--subprocesses", "--pid", str(pid)]
        try:
            seen = subprocess.run(look, capture_output=True, timeout=LOOK_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if seen.stdout:  # what one of the others denies it does not take from what was seen
            file = folder / f"{name.replace(' ', '-')}.txt"
            file.write_bytes(_COMMAND.sub(rb"\1\n", seen.stdout))
            written.append(file)
    return written
