"""Sandboxes that are containers of Docker or Podman.

A container waits for `LIFE` seconds and no longer; commands, and archives, come in by `exec`. Without network,
with the capabilities of a root over its own files, and with bounded memory and processes.

Invariant: a command reaches a container as text on stdin, never as a part of another command line. A container whose
owner is gone ends when the next owner on this machine begins, or at the end of its life.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from miles_lite.errors import UserError
from miles_lite.sandboxes.local import WORKDIR, run_inside
from miles_lite.sandboxes.owner import gone, home
from miles_lite.sandboxes.sandbox import ARCHIVE_BYTES, Sandbox, broken, image_of
from miles_lite.sandboxes.script_guard import MOST_PROCESSES
from miles_lite.sandboxes.shell import Outcome, Shell

MEMORY, OPEN_FILES = "8g", 4096
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID")
"""What a root that installs packages needs, over the container's own files."""
LIFE = 6 * 3600
"""Seconds."""
START_SECONDS, ANSWER_SECONDS, ARCHIVE_SECONDS = 600.0, 60.0, 300.0
"""For a start, with the download of an image; for anything small; for files."""
OWNER, HOST = "miles-lite.owner", "miles-lite.host"
"""Labels."""
WAIT = f"trap 'exit 0' TERM; sleep {LIFE} & wait $!"
"""A shell collects what processes of commands leave behind."""


class Container:
    """See `sandbox.Sandbox`. What a command leaves running runs on."""

    def __init__(self, program: str, name: str, workdir: str) -> None:
        self._program, self.name, self._workdir = program, name, workdir
        self._shell = Shell()

    def run(self, command: str, *, seconds: float) -> Outcome:
        outcome = run_inside(self._exec("--interactive"), self._shell, command, seconds=seconds)
        if outcome.exit_code and not running(self._program, self.name):
            raise broken(f"the container {self.name} is gone: {outcome.stderr.strip()[-200:]}")
        return outcome

    def unpack(self, archive: bytes) -> None:
        done = _asked([*self._exec("--interactive"), "tar", "-xf", "-"], ARCHIVE_SECONDS, archive)
        if done.returncode:
            raise broken(f"{self.name}: files could not be written: {_said(done)}")

    def pack(self, path: str) -> bytes:
        with tempfile.TemporaryFile() as file:
            limit = f"head -c {ARCHIVE_BYTES + 1}"
            script = f"set -o pipefail; {shlex.join([*self._exec(), 'tar', '-cf', '-', '--', path])} | {limit}"
            done = _asked(["bash", "-c", script], ARCHIVE_SECONDS, stdout=file)
            if file.tell() > ARCHIVE_BYTES:
                raise broken(f"{self.name}: {path} takes more than {ARCHIVE_BYTES >> 20} MB")
            if done.returncode and not running(self._program, self.name):
                raise broken(f"the container {self.name} is gone: {_said(done)}")
            if done.returncode:
                raise FileNotFoundError(f"{path} is not in the sandbox: {_said(done)}")
            file.seek(0)
            return file.read()

    def close(self) -> None:
        self._shell.close()
        remove(self._program, self.name)

    def _exec(self, *options: str) -> list[str]:
        return [self._program, "exec", *options, "--workdir", self._workdir, self.name]


class Containers:
    """See `sandbox.Provider`. `program` is docker, or one that is called as it is."""

    def __init__(self, program: str) -> None:
        if shutil.which(program) is None:
            raise UserError(f"sandboxes of {program}: it is not installed here")
        self._program = program

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        image = image_of(self._program, image, "as python:3.11")
        name, workdir = f"{home().name}-{name}", workdir or WORKDIR
        made = Container(self._program, name, workdir)
        if running(self._program, name):
            return made
        done = _asked([self._program, "run", *_options(name), image, "bash", "-c", WAIT], START_SECONDS)
        done = done if done.returncode else _asked([self._program, "exec", name, "mkdir", "-p", workdir], START_SECONDS)
        if done.returncode:
            remove(self._program, name)
            raise broken(f"{self._program} started no container of {image}: {_said(done)}")
        return made

    def reap(self) -> int:
        ours = ["--all", "--quiet", "--filter", f"label={HOST}={socket.gethostname()}"]
        names = _asked([self._program, "ps", *ours], ANSWER_SECONDS).stdout.decode().split()
        owner = ["--format", f'{{{{index .Config.Labels "{OWNER}"}}}}']
        left = []
        for name in names:  # one that has ended meanwhile has no owner
            said = _asked([self._program, "inspect", *owner, name], ANSWER_SECONDS).stdout.decode().strip()
            if said and gone(Path(said)):
                remove(self._program, name)
                left.append(name)
        return len(left)


def _options(name: str) -> list[str]:
    alone = ["--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    alone += [part for each in CAPABILITIES for part in ("--cap-add", each)]
    limits = ["--memory", MEMORY, "--pids-limit", str(MOST_PROCESSES)]
    limits += ["--ulimit", f"nofile={OPEN_FILES}:{OPEN_FILES}", "--ulimit", f"nproc={MOST_PROCESSES}:{MOST_PROCESSES}"]
    labels = ["--label", f"{OWNER}={home()}", "--label", f"{HOST}={socket.gethostname()}"]
    return ["--detach", "--rm", "--name", name, *labels, *alone, *limits]


def running(program: str, name: str) -> bool:
    """Whether there is a container of this name that runs."""
    done = _asked([program, "inspect", "--format", "{{.State.Running}}", name], ANSWER_SECONDS)
    return done.stdout.strip() == b"true"


def remove(program: str, name: str) -> None:
    """End a container at once, if there is one."""
    _asked([program, "kill", name], ANSWER_SECONDS)
    _asked([program, "rm", "--force", name], ANSWER_SECONDS)


def _asked(argv: list[str], seconds: float, given: bytes = b"", **where: object) -> subprocess.CompletedProcess[bytes]:
    """Raises RolloutError when there is no answer in time."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **where}
    try:
        return subprocess.run(argv, input=given, timeout=seconds, check=False, **streams)  # type: ignore[call-overload, no-any-return]
    except subprocess.TimeoutExpired as error:
        raise broken(f"{' '.join(argv[:2])} gave no answer within {seconds:g} s") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stderr or b"").decode(errors="replace").strip()[-300:] or f"exit code {done.returncode}"
