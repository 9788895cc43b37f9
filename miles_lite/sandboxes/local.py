"""Sandboxes that are folders of this machine: commands run beside us, in bubblewrap, or in Apptainer.

Invariant: of a command nothing runs on when it has ended (`shell.Shell`). A folder goes with its sandbox, at the latest
with the next owner on this machine.
"""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from miles_lite.errors import SetupError
from miles_lite.process import scratch
from miles_lite.sandboxes.bubblewrap import PYTHON, SYSTEM, View
from miles_lite.sandboxes.files import packed, unpack
from miles_lite.sandboxes.owner import home
from miles_lite.sandboxes.runtime_answers import START_SECONDS, error_tail, run_program, unstarted
from miles_lite.sandboxes.sandbox import Sandbox, image_of, workdir_of
from miles_lite.sandboxes.script_guard import TIMED_OUT
from miles_lite.sandboxes.shell import Confinement, Outcome, Shell, quoted

WORKDIR = "/app"
"""Where an image, or its place, has no folder of its own."""
GRACE = 5.0
"""Seconds that a container may take to start and to end beyond its command's limit."""

ALONE = (
    "apptainer",
    "exec",
    "--containall",
    "--cleanenv",
    "--no-home",
    "--net",
    "--network",
    "none",
    "--writable-tmpfs",
)


class Folder:
    """See `sandbox.Sandbox`. `inside`: what of the folder is a command's."""

    def __init__(self, folder: Path, shell: Shell, *, inside: str = ".") -> None:
        self.folder, self._shell, self._inside = folder, shell, folder / inside

    def run(self, command: str, *, seconds: float) -> Outcome:
        return self._shell.run(command, timeout=seconds)

    def unpack(self, archive: bytes) -> None:
        unpack(archive, self._inside)

    def pack(self, path: str) -> bytes:
        return packed(self._inside, PurePosixPath(path))

    def close(self) -> None:
        self._shell.close()
        scratch.clear(str(self.folder))


class Folders:
    """See `sandbox.Provider`. There are no images; the folder is its own."""

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        folder = new(name)
        return Folder(folder, Shell(folder=folder))

    def reap(self) -> int:
        return scratch.sweep()


class BubblewrapFolders(Folders):
    """The folder is the root of all that a command sees, and of it this machine's programs are read-only."""

    def __init__(self) -> None:
        if flaw := View.of_machine("/", writable=False).flaw():
            raise SetupError(f"sandboxes of bwrap: {flaw}")

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        workdir = workdir_of("bwrap", workdir or WORKDIR)
        folder = new(name)
        for each in ("tmp", workdir.lstrip("/")):
            (folder / each).mkdir(parents=True, exist_ok=True)
        view = View(begins=workdir, root=str(folder), writes_root=True, shown=(*SYSTEM, *PYTHON))
        shell = Shell(folder=folder, sandbox=Confinement.BWRAP, view=view)
        return Folder(folder, shell, inside=workdir.lstrip("/"))


def new(name: str) -> Path:
    """A sandbox's folder, or the one that it has."""
    folder = home() / name
    folder.mkdir(exist_ok=True)
    return folder


class ApptainerFolders(Folders):
    """Each command in a container of its own, of which the folder is what lasts. `image` is a .sif file or an address
    (docker://...)."""

    def __init__(self) -> None:
        self._tried: set[str] = set()
        if shutil.which("apptainer") is None:
            raise SetupError("sandboxes of apptainer: it is not installed here")

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        image = image_of("apptainer", image, "a .sif file, or an address as docker://python:3.11")
        workdir = workdir_of("apptainer", workdir or WORKDIR)
        self._try(image)
        folder = new(name)
        return _Contained(folder, Shell(folder=folder), image, workdir)

    def _try(self, image: str) -> None:
        """Raises as `start` does, where its first command would end before it began."""
        if image in self._tried:
            return
        done = run_program([*ALONE, image, "bash", "-c", "timeout 1 true"], START_SECONDS)
        if done.returncode:
            raise unstarted("apptainer", image, error_tail(done))
        self._tried.add(image)


class _Contained(Folder):
    def __init__(self, folder: Path, shell: Shell, image: str, workdir: str) -> None:
        super().__init__(folder, shell)
        self._argv = [*ALONE, "--bind", f"{folder}:{workdir}", "--pwd", workdir, image]

    def run(self, command: str, *, seconds: float) -> Outcome:
        return run_inside(self._argv, self._shell, command, seconds=seconds)


def run_inside(argv: Sequence[str], shell: Shell, command: str, *, seconds: float) -> Outcome:
    """Run a bash command in the container that `argv` leads into, which outlives the client that started it: the
    command comes on stdin and has a time limit there. It ends as a shell's does when its time was up, whichever
    `timeout` the image has, and by whichever signal that ended it."""
    inside = shlex.join([*argv, "timeout", "-k", f"{GRACE:g}", f"{seconds:g}", "bash", "-s"])
    outcome = shell.run(f"printf %s {quoted(command)} | {inside}", timeout=seconds + 2 * GRACE)
    if outcome.seconds < seconds or outcome.exit_code not in (TIMED_OUT, 128 + signal.SIGTERM, 128 + signal.SIGKILL):
        return outcome
    said = f"{outcome.stderr}\n[timed out after {seconds:g} s]".lstrip("\n")
    return replace(outcome, exit_code=TIMED_OUT, stderr=said)
