"""Temp folders that are gone when what used them is, however it ends.

    python scratch.py        the keeper of one: prints the folder, and removes it some time after its stdin has closed

A folder's lock is held, by its keeper, for as long as it may be used. Whoever makes a folder first removes those whose
keeper has been killed.
Invariant: only folders that were made here are removed, and none whose lock is held. This file stands alone: guards run
it too, and nothing of miles_lite is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
import time

PREFIX = "miles-lite-"
OUTER = "MILES_LITE_OUTER_TMPDIR"
"""Where the temp folder was before one of these took its place."""
_LOCK = ".lock"
LEAVING_SECONDS = 60.0
"""How long whoever still uses a folder may take to end."""
_POLL, _QUIET = 0.25, 4


def make() -> str:
    """A folder that is locked by this process until it ends; the temp folder of those whose TMPDIR it becomes."""
    sweep()
    draft = tempfile.mkdtemp(prefix=f"draft-{PREFIX}")
    lock = os.open(os.path.join(draft, _LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # never closed: the kernel does it
    folder = os.path.join(os.path.dirname(draft), os.path.basename(draft).removeprefix("draft-"))
    os.rename(draft, folder)
    return folder


def sweep() -> None:
    """Remove the folders that nobody holds any more."""
    for lock in glob.glob(os.path.join(tempfile.gettempdir(), f"{PREFIX}*", _LOCK)):
        try:
            held = os.open(lock, os.O_RDWR)
        except OSError:  # gone, or another user's
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(os.path.dirname(lock))
        except OSError:
            continue
        finally:
            os.close(held)


def lasting() -> str:
    """The temp folder for what is to outlive those that are made here."""
    return os.environ.get(OUTER) or tempfile.gettempdir()


def remove(folder: str) -> None:
    """With all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def used(folder: str) -> bool:
    """Whether a process was started with `folder` as its temp folder, and lives."""
    wanted = b"TMPDIR=" + os.fsencode(folder)
    for environment in glob.glob("/proc/[0-9]*/environ"):
        with contextlib.suppress(OSError), open(environment, "rb") as file:
            if wanted in file.read().split(b"\0"):
                return True
    return False


def main() -> None:
    """Keep a folder until stdin closes and nobody uses it."""
    folder = make()
    print(folder, flush=True)
    while os.read(0, 4096):
        pass
    deadline, quiet = time.monotonic() + LEAVING_SECONDS, 0
    while quiet < _QUIET and time.monotonic() < deadline:
        quiet = 0 if used(folder) else quiet + 1
        time.sleep(_POLL)
    remove(folder)


if __name__ == "__main__":
    main()
