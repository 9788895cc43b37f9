"""What processes of this machine are at: the Python stacks of their threads, as py-spy sees them from outside, so that
one that hangs in foreign code tells too.

Invariant: nothing here raises for a process that is gone, or a py-spy that is missing or may not look; each look has a
bound.
"""

from __future__ import annotations

import faulthandler
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LOOK_SECONDS = 10.0


def write_stacks(folder: Path, pids: Mapping[str, int]) -> list[Path]:
    """A file in `folder` for each process by its name, and one for this process; those that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "driver.txt"
    with own.open("w", encoding="utf-8") as stream:
        faulthandler.dump_traceback(stream)
    written = [own]
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    for name, pid in pids.items() if program else ():
        try:
            seen = subprocess.run(
                [program or "", "dump", "--pid", str(pid)], capture_output=True, timeout=LOOK_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if seen.returncode == 0:
            file = folder / f"{name.replace(' ', '-')}.txt"
            file.write_bytes(seen.stdout)
            written.append(file)
    return written
