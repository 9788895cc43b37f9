"""Temp folders that are gone when what used them is, however it ends.

    python scratch.py [SECONDS]

is the keeper of one: it prints the folder, and removes it when its stdin has closed and nobody uses it. Who still does
after SECONDS was started by somebody who is gone, and is ended: asked at first, killed after as long again.

A folder's lock is held, by its keeper, for as long as it may be used. A keeper removes those whose keeper has been
killed, once it has said what its own is.
Invariant: only folders that were made here by this user are removed, and none whose lock is held. What is in them may
be an agent's: no link is followed, and only notes beside a lock are believed. This file stands alone: guards run it
too, and nothing of miles_lite is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

PREFIX = "miles-lite-"
OUTER = "MILES_LITE_OUTER_TMPDIR"
"""Where the temp folder was before one of these took its place."""
LOCK, _NOTED = ".lock", ".noted"
LEAVING_SECONDS = 10.0
"""How long whoever still uses a folder may take to end: some of Ray's processes outlive a killed driver by a minute."""
_POLL, _QUIET = 0.25, 4


def make() -> str:
    """A folder that is locked by this process until it ends; the temp folder of those whose TMPDIR it becomes."""
    draft = tempfile.mkdtemp(prefix=f"draft-{PREFIX}")
    lock = os.open(os.path.join(draft, LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # never closed: the kernel does it
    folder = os.path.join(os.path.dirname(draft), os.path.basename(draft).removeprefix("draft-"))
    os.rename(draft, folder)
    return folder


def sweep() -> int:
    """Remove the folders that nobody holds any more; how many they were."""
    swept = 0
    for lock in glob.glob(os.path.join(glob.escape(tempfile.gettempdir()), f"{PREFIX}*", LOCK)):
        try:
            if (
                os.lstat(os.path.dirname(lock)).st_uid != os.geteuid()
            ):  # its notes may name any file, and we may be root
                continue
            held = os.open(lock, os.O_RDWR)
        except OSError:  # gone
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(os.path.dirname(lock))
            swept += 1
        except OSError:
            continue
        finally:
            os.close(held)
    return swept


def lasting() -> str:
    """The temp folder for what is to outlive those that are made here."""
    return os.environ.get(OUTER) or tempfile.gettempdir()


def register(folder: str, files: set[str]) -> None:
    """Let `files`, which lie elsewhere, go with `folder`: who made them may be killed before it can remove them."""
    with open(os.path.join(folder, _NOTED), "w") as noted:
        noted.write("\n".join(files))


def remove(folder: str) -> None:
    """With all that is in it, and what was noted there."""
    for path in _made(folder):
        with contextlib.suppress(OSError), open(os.path.join(path, _NOTED)) as noted:
            for file in noted.read().splitlines():
                with contextlib.suppress(OSError):
                    os.unlink(file)
    clear(folder)


def clear(folder: str) -> None:
    """Remove it, also where it is deeper than Python goes, or its folders are not to be written."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.isdir(folder) and not os.path.islink(folder):
        for argv in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            with contextlib.suppress(OSError):
                subprocess.run([*argv, "--", folder], stderr=subprocess.DEVNULL, check=False)


def _made(folder: str) -> Iterator[str]:
    """It, and those that were made here in it, whose temp folder it was."""
    yield folder
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                yield from _made(entry.path)


def users(folder: str) -> list[int]:
    """The processes that were started with `folder` as their temp folder, and live."""
    wanted, found = b"TMPDIR=" + os.fsencode(folder), []
    for environment in glob.glob("/proc/[0-9]*/environ"):
        with contextlib.suppress(OSError), open(environment, "rb") as file:
            if wanted in file.read().split(b"\0"):
                found.append(int(environment.split("/")[2]))
    return found


def main(leaving: float) -> None:
    """Keep a folder until stdin closes and nobody uses it."""
    folder = make()
    print(folder, flush=True)
    sweep()
    while os.read(0, 4096):
        pass
    began, quiet = time.monotonic(), 0
    while quiet < _QUIET:
        left = users(folder)
        quiet = 0 if left else quiet + 1
        for pid in left if time.monotonic() - began > leaving else ():
            with contextlib.suppress(OSError):  # first so that a guard ends its server in order
                os.kill(pid, signal.SIGKILL if time.monotonic() - began > 2 * leaving else signal.SIGTERM)
        time.sleep(_POLL)
    remove(folder)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else LEAVING_SECONDS)
