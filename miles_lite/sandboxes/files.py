"""Files into a sandbox and out of it, as tar archives.

Invariant: what comes out of a sandbox is written below the folder that was named and nowhere else, whatever its names
and links are (PEP 706's filters): files and folders, and links as they are. An archive has ARCHIVE_ENTRIES at most, and
takes ARCHIVE_BYTES at most, as do the files that it says to hold: one that is compressed, or has files with holes, is
none.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from miles_lite.sandboxes.sandbox import ARCHIVE_BYTES, ARCHIVE_ENTRIES, Sandbox, broken, is_text

EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
EXTENDED_BYTES = 1 << 16
"""Of such a header, which is read as it is."""


def put(sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
    """Write files, by their paths below the sandbox's folder. Raises FileNotFoundError for a path that is none."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path, content in files.items():
            called(path)
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    sandbox.unpack(data.getvalue())


def get(sandbox: Sandbox, path: str) -> bytes:
    """A file's content. Raises FileNotFoundError, also for what is no file."""
    with opened(sandbox.pack(called(path))) as archive:
        members = archive.getmembers()
        content = archive.extractfile(members[0]) if len(members) == 1 and members[0].isreg() else None
        if content is not None:
            return content.read()
    raise FileNotFoundError(f"{path} is no file")


def push(sandbox: Sandbox, folder: Path) -> None:
    """Put all that is in a folder of this machine into the sandbox's."""
    sandbox.unpack(packed(folder, PurePosixPath()))


def pull(sandbox: Sandbox, folder: Path, *, leave: Callable[[PurePosixPath], bool] = lambda path: False) -> None:
    """Write what is in the sandbox's folder into one of this machine, but for paths that are to be left."""
    with opened(sandbox.pack(".")) as archive:
        wanted = [member for member in archive.getmembers() if not leave(PurePosixPath(member.name))]
        archive.extractall(folder, wanted, filter=_below)


def packed(folder: Path, path: PurePosixPath, *, name: str | None = None) -> bytes:
    """The archive of what is at `path` below a folder of this machine, there or as `name`. Raises FileNotFoundError,
    also where a link leads out of the folder, and RolloutError, before it reads them, for more than an archive has."""
    root, at = folder.resolve(), folder / called(str(path))
    if (not at.parent.resolve().is_relative_to(root) and at != folder) or not os.path.lexists(at):
        raise FileNotFoundError(f"{path} is not in the sandbox")
    data, room = io.BytesIO(), _Room(f"what was asked for, {path},")

    def fits(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        room.take(tarfile.BLOCKSIZE + member.size)
        return _anybodys(member)

    with failing_as_broken(), tarfile.open(fileobj=data, mode="w") as archive:
        archive.add(at, arcname=name or str(path), filter=fits)
    return data.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Extract all of it below a folder of this machine. Raises RolloutError, also for what would be elsewhere."""

    def inside(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo:
        if (kept := _below(member, where)) is None:
            raise broken(f"{member.name} is not written: it would be outside of the sandbox, or is no file")
        return kept

    with opened(archive) as given:
        given.extractall(folder, filter=inside)


@contextlib.contextmanager
def opened(archive: bytes) -> Iterator[tarfile.TarFile]:
    """Raises RolloutError for what is no archive, or says to hold more than one has."""
    room = _Room("an archive of a sandbox")
    with failing_as_broken(), tarfile.open(fileobj=io.BytesIO(archive), mode="r:", tarinfo=_Member) as read:
        for member in read:
            room.take(member.size)
        yield read


class _Member(tarfile.TarInfo):
    """One whose extended header is no larger than names and links can be."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """The hook that `tarfile` leaves to its users. Raises RolloutError."""
        if self.type in EXTENDED and self.size > EXTENDED_BYTES:
            raise broken(
                f"an archive of a sandbox has a header of {self.size:,} bytes; at most {EXTENDED_BYTES:,} are read"
            )
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


@dataclass
class _Room:
    """What an archive may hold. `what`: whose it is, in words."""

    what: str
    entries: int = 0
    size: int = 0

    def take(self, size: int) -> None:
        """Another entry. Raises RolloutError where there is no room for it."""
        self.entries, self.size = self.entries + 1, self.size + size
        if self.entries > ARCHIVE_ENTRIES:
            raise broken(f"{self.what} has more than {ARCHIVE_ENTRIES:,} files, folders and links")
        if self.size > ARCHIVE_BYTES:
            raise broken(f"{self.what} takes more than {ARCHIVE_BYTES >> 20} MB")


def called(path: str) -> str:
    """A path that a file can have. Raises FileNotFoundError."""
    if not is_text(path):
        raise FileNotFoundError(f"{path!a} is not in the sandbox: no file has such a name")
    return path


@contextlib.contextmanager
def failing_as_broken() -> Iterator[None]:
    """Raises RolloutError for an archive that cannot be read or written, or whose folders are nested too deep."""
    try:
        yield
    except (tarfile.TarError, OSError, RecursionError) as error:
        raise broken(f"an archive of a sandbox cannot be read or written: {error}") from error


def _below(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """None for what would be written elsewhere. A symbolic link may say what it likes, since nothing is written through
    it."""
    if _anybodys(member) is None:
        return None
    try:
        return tarfile.data_filter(member, folder)
    except (tarfile.LinkOutsideDestinationError, tarfile.AbsoluteLinkError):
        return tarfile.tar_filter(member, folder) if member.issym() else None
    except tarfile.FilterError:
        return None


def _anybodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without an owner; sockets and devices stay where they are."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None
