"""What every sandbox does, and who makes them.

Invariant: what a command does is an `Outcome`. A sandbox that cannot be made, reached or found any more is a failure of
the environment (`RolloutError`), which is no reward; one that no attempt could make is the user's to mend
(`SetupError`).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Protocol

from miles_lite.errors import RolloutError, SetupError, Where
from miles_lite.sandboxes.shell import Outcome

ARCHIVE_BYTES, ARCHIVE_ENTRIES = 1 << 30, 100_000
"""Of an archive, in which each file, folder and link is an entry."""


class Sandbox(Protocol):
    """A folder of files, and commands that run in it, one at a time. It belongs to one caller."""

    def run(self, command: str, *, seconds: float) -> Outcome:
        """Run a bash command; `exit_code` is 124 when its time was up. Raises RolloutError."""

    def unpack(self, archive: bytes) -> None:
        """Put the files of a tar archive into the folder. Raises RolloutError."""

    def pack(self, path: str) -> bytes:
        """A file or folder below the folder, as a tar archive of at most ARCHIVE_BYTES; `.` is all of it. Raises
        FileNotFoundError, RolloutError."""

    def close(self) -> None:
        """End it, and all that is in it. Idempotent."""


class Provider(Protocol):
    """Makes sandboxes of one kind, for several threads at once."""

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        """A sandbox of this name; one that there is already is taken over, since an earlier answer may have been lost.

        `image`: what it is made of, where there are such; `workdir`: its folder, where an image has one of its own.
        Raises RolloutError when another attempt may succeed, SetupError when none can.
        """

    def reap(self) -> int:
        """End what was left by owners that are gone; how many there were."""


def image_of(kind: str, image: str | None, such: str) -> str:
    """Raises SetupError where there is none, and for what its program would take for an option."""
    if not image or image.startswith("-") or not is_text(image):
        raise SetupError(f"sandboxes of {kind} need an image, {such}" + (f"; {image!a} is none" if image else ""))
    return image


def workdir_of(kind: str, workdir: str) -> str:
    """Raises SetupError for what is no folder of a sandbox, by its whole path."""
    if not workdir.startswith("/") or ".." in PurePosixPath(workdir).parts or not is_text(workdir):
        raise SetupError(f"sandboxes of {kind}: {workdir!a} is no folder of a sandbox")
    return workdir


def is_text(word: str) -> bool:
    """Whether a program, and a file's name, can be given it."""
    return "\0" not in word and word == word.encode(errors="replace").decode()


def broken(why: str) -> RolloutError:
    """The failure of a sandbox."""
    return RolloutError(Where.ENVIRONMENT, why)
