"""Shell scripts in child processes: bounded in time and output, and gone when they are done.

Invariant: when `Shell.run` returns, nothing that the script started is left (see script_guard.py), and of its output
at most `KEEP` bytes of each stream were ever held. A script reaches bash as a file in memory, so its size has no
limit but memory's and it is on no command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from miles_lite.config.choices import Word
from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonObject
from miles_lite.sandboxes.bubblewrap import View

GUARD = Path(__file__).with_name("script_guard.py")
KEEP = 8192
"""Bytes of stdout and of stderr that are kept."""
PART = 1 << 14
"""Characters of a value that are assigned at once."""
GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL."""
PATIENCE = 15.0
"""Seconds beyond a script's time limit after which the guard itself is given up."""
LIMITS = "ulimit -c 0 -v 4194304 -u 256\n"
"""Inside bubblewrap: no core files, 4 GiB of address space and 256 processes."""


class Confinement(Word):
    """What a script is shut into."""

    NONE = "none"
    BWRAP = "bwrap"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a script ended. `exit_code` is 124 after a time-out, 128 + n after signal n; `seconds` is wall time."""

    stdout: str
    stderr: str
    exit_code: int
    seconds: float


class Shell:
    """Runs scripts one at a time; a context manager. Owns one helper process, started with the first script."""

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        folder: Path | None = None,
        sandbox: Confinement = Confinement.NONE,
        view: View | None = None,
    ) -> None:
        """`timeout` bounds each script, in seconds. `folder` is where scripts work, and stays writable in a sandbox;
        without it they work in the current folder, read-only in a sandbox. `view`: what a script sees in one, in the
        place of that. Raises UserError."""
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is no folder: tools need an existing one to work in")
        self._timeout, self._folder, self._sandboxed = (
            timeout,
            (folder or Path.cwd()).resolve(),
            sandbox == Confinement.BWRAP,
        )
        seen = view or View.of_machine(self._folder, writable=folder is not None)
        if self._sandboxed and (flaw := seen.flaw()):
            raise UserError(f"--sandbox bwrap: {flaw}\n  Without it take --sandbox none, on a machine made for it.")
        self._argv = [*(seen.command if self._sandboxed else ()), "bash"]
        self._env = environment(home="/tmp" if self._sandboxed else None)
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, script: str, *, timeout: float | None = None) -> Outcome:
        """Run a bash script to its end or its time limit (`timeout`, else the shell's), in seconds. What no script can
        hold, a lone surrogate, is a question mark in it."""
        timeout = self._timeout if timeout is None else timeout
        source = ((LIMITS if self._sandboxed else "") + script).encode(errors="replace")
        request = {
            "argv": self._argv,
            "cwd": str(self._folder),
            "env": self._env,
            "timeout": timeout,
            "grace": GRACE,
            "keep": KEEP,
            "sandboxed": self._sandboxed,
            "script_bytes": len(source),
        }
        try:
            answer = self._ask(json.dumps(request).encode() + b"\n" + source, timeout + GRACE + PATIENCE)
        except BaseException:
            self.close()
            raise
        if answer is None:
            self.close()
            return Outcome("", "the process that watches over tools was killed", 137, 0.0)
        stdout, stderr = (
            _text(answer[name], cut) for name, cut in zip(("stdout", "stderr"), answer["cut"], strict=True)
        )
        if answer.get("timed_out"):
            stderr += f"\n[timed out after {timeout:g} s]"
        if crowded := answer.get("crowded"):
            stderr += f"\n[ended: it had more than {crowded} processes]"
        if answer.get("left_running"):
            stderr += "\n[a process of this tool could not be ended]"
        return Outcome(stdout, stderr.lstrip("\n"), answer["exit_code"], answer["seconds"])

    def close(self) -> None:
        """End the helper and what it runs. Idempotent; a later `run` starts a new one."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        assert guard.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()
        try:
            guard.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        guard.stdout.close()

    def _ask(self, request: bytes, limit: float) -> JsonObject | None:
        """The guard's answer within `limit` seconds; None when it was killed."""
        if self._guard is None or self._guard.poll() is not None:
            self.close()
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._env,
                start_new_session=True,
            )
        guard = self._guard
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            guard.stdin.write(request)
            guard.stdin.flush()
        except BrokenPipeError:
            return None
        if not select.select([guard.stdout], [], [], limit)[0]:
            guard.kill()
            raise RuntimeError(f"the guard of a tool gave no answer within {limit:g} s")
        line = guard.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def environment(*, home: str | None = None) -> dict[str, str]:
    """All that a tool sees of the environment: PATH, HOME and LANG."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home or os.environ.get("HOME", "/"),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
    }


def quoted(value: str) -> str:
    """`value` as one word of a shell script, whatever it holds but NUL."""
    return "'" + value.replace("'", "'\\''") + "'"


def assignments(values: Mapping[str, str]) -> str:
    """Script lines that set shell variables, in this order; long values by parts, since bash's time to read one word
    grows with the square of the quotation marks in it."""
    lines = []
    for name, value in values.items():
        parts = [value[start : start + PART] for start in range(0, len(value), PART)] or [""]
        lines += [f"{name}{'+=' if number else '='}{quoted(part)}\n" for number, part in enumerate(parts)]
    return "".join(lines)


def clipped(text: str) -> str:
    """`text` cut to `KEEP` bytes, as the output of a script is."""
    data = text.encode(errors="replace")
    return _text(data[:KEEP].decode("latin-1"), max(0, len(data) - KEEP))


def _text(latin: str, cut: int) -> str:
    """What was kept, up to its last whole character, and how much is missing."""
    data = latin.encode("latin-1")
    if not cut:
        return data.decode(errors="replace")
    for size in range(1, 4):  # a character that the cut went through
        if len(data) >= size and data[-size] >= 0xC0:
            whole = 2 if data[-size] < 0xE0 else 3 if data[-size] < 0xF0 else 4
            if whole > size:
                data, cut = data[:-size], cut + size
            break
    return data.decode(errors="replace") + f"…[truncated {cut} bytes]"
