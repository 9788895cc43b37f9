"""Sandboxes that are containers of Docker or Podman.

A container waits for `LIFE` seconds and no longer; commands, and archives, come in by `exec`. Without network,
with the capabilities of a root over its own files, and with bounded memory and processes.

Invariant: a command reaches a container as text on stdin, never as a part of another command line. A container whose
owner is gone ends when the next owner on this machine begins, or at the end of its life.
"""

from __future__ import annotations

import resource
import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from miles_lite.errors import RolloutError, SetupError
from miles_lite.sandboxes.local import WORKDIR, run_inside
from miles_lite.sandboxes.owner import gone, home
from miles_lite.sandboxes.runtime_answers import NOT_RUN, START_SECONDS, error_tail, flaw, run_program, unstarted
from miles_lite.sandboxes.sandbox import ARCHIVE_BYTES, Sandbox, broken, image_of, workdir_of
from miles_lite.sandboxes.script_guard import MOST_PROCESSES
from miles_lite.sandboxes.shell import Outcome, Shell

MEMORY, OPEN_FILES = "8g", 4096
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID")
"""What a root that installs packages needs, over the container's own files."""
LIFE = 6 * 3600
"""Seconds."""
ARCHIVE_SECONDS = 300.0
ALL_PROCESSES, ALLOWED = 64 * MOST_PROCESSES, resource.getrlimit(resource.RLIMIT_NPROC)[1]
"""Of one user in all containers together, as the kernel counts. Without privileges nobody gives more than he has."""
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
        done = run_program([*self._exec("--interactive"), "tar", "-xf", "-"], ARCHIVE_SECONDS, archive)
        if done.returncode:
            raise broken(f"{self.name}: files could not be written: {error_tail(done)}")

    def pack(self, path: str) -> bytes:
        with tempfile.TemporaryFile() as file:
            limit = f"head -c {ARCHIVE_BYTES + 1}"
            script = f"set -o pipefail; {shlex.join([*self._exec(), 'tar', '-cf', '-', '--', path])} | {limit}"
            done = run_program(["bash", "-c", script], ARCHIVE_SECONDS, stdout=file)
            if file.tell() > ARCHIVE_BYTES:
                raise broken(f"{self.name}: {path} takes more than {ARCHIVE_BYTES >> 20} MB")
            if done.returncode and not running(self._program, self.name):
                raise broken(f"the container {self.name} is gone: {error_tail(done)}")
            if done.returncode:
                raise FileNotFoundError(f"{path} is not in the sandbox: {error_tail(done)}")
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
            raise SetupError(f"sandboxes of {program}: it is not installed here")
        if why := flaw(program):
            raise SetupError(
                f"sandboxes of {program}: it does not work here: {why}\n  Start its daemon, or let this user in, so "
                f"that '{program} ps' works, or take another kind of sandbox."
            )
        self._program = program

    def start(self, name: str, image: str | None, workdir: str | None) -> Sandbox:
        image = image_of(self._program, image, "as python:3.11")
        name, workdir = f"{home().name}-{name}", workdir_of(self._program, workdir or WORKDIR)
        made = Container(self._program, name, workdir)
        if running(self._program, name):
            return made
        done = run_program([self._program, "run", *_options(name), image, "bash", "-c", WAIT], START_SECONDS)
        done = (
            done
            if done.returncode
            else run_program([self._program, "exec", name, "mkdir", "-p", workdir], START_SECONDS)
        )
        if done.returncode:
            remove(self._program, name)
            raise self._unstarted(image, done)
        return made

    def _unstarted(self, image: str, done: subprocess.CompletedProcess[bytes]) -> SetupError | RolloutError:
        here = run_program([self._program, "image", "inspect", image]).returncode == 0
        if done.returncode in NOT_RUN or (not here and flaw(self._program) is None):
            return unstarted(self._program, image, error_tail(done))
        return broken(f"{self._program} started no container of {image}: {error_tail(done)}")

    def reap(self) -> int:
        ours = ["--all", "--quiet", "--filter", f"label={HOST}={socket.gethostname()}"]
        names = run_program([self._program, "ps", *ours]).stdout.decode().split()
        owner = ["--format", f'{{{{index .Config.Labels "{OWNER}"}}}}']
        left = []
        for name in names:  # one that has ended meanwhile has no owner
            its = run_program([self._program, "inspect", *owner, name]).stdout.decode().strip()
            if its and gone(Path(its)):
                remove(self._program, name)
                left.append(name)
        return len(left)


def _options(name: str) -> list[str]:
    alone = ["--network", "none", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    alone += [part for each in CAPABILITIES for part in ("--cap-add", each)]
    limits = ["--memory", MEMORY, "--pids-limit", str(MOST_PROCESSES)]
    processes = ALL_PROCESSES if ALLOWED == resource.RLIM_INFINITY else min(ALL_PROCESSES, ALLOWED)
    limits += ["--ulimit", f"nofile={OPEN_FILES}:{OPEN_FILES}", "--ulimit", f"nproc={processes}:{processes}"]
    labels = ["--label", f"{OWNER}={home()}", "--label", f"{HOST}={socket.gethostname()}"]
    return ["--detach", "--rm", "--name", name, *labels, *alone, *limits]


def running(program: str, name: str) -> bool:
    """Whether there is a container of this name that runs."""
    done = run_program([program, "inspect", "--format", "{{.State.Running}}", name])
    return done.stdout.strip() == b"true"


def remove(program: str, name: str) -> None:
    """End a container at once, if there is one."""
    run_program([program, "kill", name])
    run_program([program, "rm", "--force", name])
