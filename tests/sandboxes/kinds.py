"""Every kind of sandbox that this machine can make, real ones."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sandboxes.servers import served

NO_BWRAP = (
    shutil.which("bwrap") is None
    or subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True).returncode != 0
)
needs_bwrap = pytest.mark.skipif(NO_BWRAP, reason="bubblewrap does not work here")
IMAGE = f"localhost/miles-lite-test:{os.getpid()}"
PROGRAMS = ("bash", "timeout", "tar", "sleep", "cat", "ls", "mkdir", "ln", "wc", "rm", "mv", "cp", "dirname")
RUNC = '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\n'
"""Podman's own choice does not take every kernel's control groups."""


@functools.cache
def podman_works() -> bool:
    """Whether a container runs here; makes the image for it, of this machine's programs, until this process ends."""
    if shutil.which("podman") is None or shutil.which("runc") is None:
        return False
    with tempfile.TemporaryDirectory(prefix="miles-lite-image-") as folder:
        _root(Path(folder))
        tar = subprocess.run(["tar", "-C", folder, "-c", "."], capture_output=True, check=True).stdout
        with containers():
            atexit.register(subprocess.run, ["podman", "rmi", "--force", IMAGE], capture_output=True, timeout=60)
            made = subprocess.run(["podman", "import", "-", IMAGE], input=tar, capture_output=True, timeout=120)
            argv = [
                "podman",
                "run",
                "--rm",
                "--network",
                "none",
                *("--ulimit", "nofile=64:64", "--ulimit", "nproc=64:64"),
            ]
            ran = subprocess.run([*argv, IMAGE, "bash", "-c", "exit 7"], capture_output=True, timeout=120)
    return made.returncode == 0 and ran.returncode == 7


@contextmanager
def containers() -> Iterator[None]:
    """Podman with a runtime that works."""
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(RUNC)
        file.flush()
        before = os.environ.get("CONTAINERS_CONF")
        os.environ["CONTAINERS_CONF"] = file.name
        try:
            yield
        finally:
            if before is None:
                del os.environ["CONTAINERS_CONF"]
            else:
                os.environ["CONTAINERS_CONF"] = before


KINDS = ["local", pytest.param("bwrap", marks=needs_bwrap), "podman", "http"]


@contextmanager
def kind_of(name: str) -> Iterator[str]:
    """What a pool is asked for; skips where this machine makes none."""
    with contextlib.ExitStack() as stack:
        if name == "podman":
            if not podman_works():
                pytest.skip("podman with runc does not work here")
            stack.enter_context(containers())
        yield stack.enter_context(served("--kind", "local")) if name == "http" else name


def _root(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("tmp", "proc", "sys", "dev", "etc", "bin"):
        (folder / name).mkdir()
    for program in PROGRAMS:
        path = shutil.which(program)
        assert path is not None
        shutil.copy(path, folder / "bin" / program)
        needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.split()
        for library in {each for each in needed if each.startswith("/")}:
            target = folder / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
