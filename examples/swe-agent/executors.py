"""Where a SWE-bench instance's commands run: this machine, bubblewrap, Docker or Apptainer.

    SWE_EXECUTOR=local | bwrap | docker | apptainer       SWE_IMAGES: folder of .sif files for Apptainer

Every executor is a script for `Shell`, which bounds its time and output and leaves nothing behind; a container gets the
command on stdin and has a time limit of its own, since a container outlives the client that started it.

Invariant: a command reaches an executor as text, never as a part of another command line.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from miles_lite.agent.shell import Outcome, Shell
from miles_lite.errors import UserError

Kind = Literal["local", "bwrap", "docker", "apptainer"]
TESTBED = "/testbed"
"""Where SWE-bench's images have the repository."""
MEMORY, PROCESSES = "8g", 512
CONTAINER_GRACE = 5.0
"""Seconds that a container may take to start and to end beyond its command's limit."""


def docker(folder: Path, image: str, *, seconds: float) -> list[str]:
    """The command that runs a script from stdin in a throw-away container on `folder`, without network."""
    limits = ["--network", "none", "--memory", MEMORY, "--pids-limit", str(PROCESSES), "--cap-drop", "ALL"]
    limits += ["--security-opt", "no-new-privileges"]
    user = ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp"]
    mount = ["--volume", f"{folder}:{TESTBED}", "--workdir", TESTBED]
    return ["docker", "run", "--rm", "-i", "--init", *limits, *user, *mount, image, *_bash(seconds)]


def apptainer(folder: Path, image: str, *, seconds: float) -> list[str]:
    """The same with Apptainer, which needs no daemon. `image` is a .sif file or a docker:// address."""
    alone = ["--containall", "--cleanenv", "--no-home", "--net", "--network", "none", "--writable-tmpfs"]
    mount = ["--bind", f"{folder}:{TESTBED}", "--pwd", TESTBED]
    return ["apptainer", "exec", *alone, *mount, image, *_bash(seconds)]


def image_of(instance_id: str, kind: Kind) -> str:
    """SWE-bench's evaluation image of an instance: by name for Docker, by file in SWE_IMAGES for Apptainer."""
    name = f"sweb.eval.x86_64.{instance_id.lower().replace('__', '_1776_')}"
    if kind == "docker":
        return f"swebench/{name}:latest"
    images = os.environ.get("SWE_IMAGES")
    return str(Path(images, f"{name}.sif")) if images else f"docker://swebench/{name}:latest"


class Executor:
    """Runs bash commands on the repository at `folder`; a context manager."""

    def __init__(self, kind: Kind, folder: Path, *, instance_id: str, seconds: float) -> None:
        self._wrap: Callable[[str], str] = str
        if kind in ("docker", "apptainer"):
            build = docker if kind == "docker" else apptainer
            argv = build(folder, image_of(instance_id, kind), seconds=seconds)
            self._wrap = lambda command: f"printf %s {shlex.quote(command)} | {shlex.join(argv)}\n"
            seconds += 2 * CONTAINER_GRACE
        self._shell = Shell(timeout=seconds, folder=folder, sandbox="bwrap" if kind == "bwrap" else "none")

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.close()

    def run(self, command: str) -> Outcome:
        return self._shell.run(self._wrap(command))


def chosen() -> Kind:
    """The executor that SWE_EXECUTOR names; local without it. Raises UserError."""
    name = os.environ.get("SWE_EXECUTOR", "local")
    if name not in get_args(Kind):
        raise UserError(f"SWE_EXECUTOR={name}: there are {', '.join(get_args(Kind))}")
    return name  # type: ignore[return-value]


def _bash(seconds: float) -> list[str]:
    return ["timeout", "--kill-after", f"{CONTAINER_GRACE:g}", f"{seconds:g}", "bash", "-s"]
