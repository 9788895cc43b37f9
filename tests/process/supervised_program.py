"""A program beneath test_supervise.py: it does what `spec`, a list of actions, says for this start of it.

Each start appends its process id, and that of a child of its own, to the file `notes`.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.process import supervised


@dataclass(frozen=True)
class Script:
    """What the first start does, the second and so on; the last one again and again."""

    notes: Path
    acts: tuple[str, ...]


async def serve(script: Script, _listener: socket.socket, ready: Callable[[], None]) -> None:
    child = subprocess.Popen(["sleep", "60"])
    with script.notes.open("a") as notes:
        notes.write(f"{child.pid}\n")
    starts = len(script.notes.read_text().splitlines())
    act = script.acts[min(starts, len(script.acts)) - 1]
    if act == "refuse":
        raise UserError("there is no milk")
    ready()
    if act == "hang":
        await asyncio.sleep(0.1)
        time.sleep(60)
    if act == "end":
        await asyncio.sleep(0.1)
        return
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(supervised.run(serve, int(sys.argv[1])))
