"""Commands in bubblewrap (https://github.com/containers/bubblewrap), and what they see of this machine.

Invariant: whatever it sees, a command has no network, no process but its own and no terminal, and ends with who
started it; only what is `writable` outlives it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
"""This machine's programs."""
PYTHON = tuple(dict.fromkeys((sys.prefix, sys.base_prefix)))
"""This process's."""
TRIAL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Folders, each over those before it. `begins`: where a command begins; `root`: what is `/`, None: nothing of this
    machine; `writes_root`: else it is read-only, as are those `shown`, where they are there; `empty`: its own."""

    begins: str
    root: str | None = None
    writes_root: bool = False
    empty: Sequence[str] = ()
    shown: Sequence[str] = ()
    writable: str | None = None

    @classmethod
    def of_machine(cls, folder: Path | str, *, writable: bool = True, shown: Sequence[str] = ()) -> View:
        """All of this machine, read-only but for `folder`; of its /tmp and /run only what is `shown`."""
        where, covered = str(folder), [each for each in shown if each.startswith(("/tmp/", "/run/"))]
        seen, written = (covered, where) if writable else ([*covered, where], None)
        return cls(begins=where, root="/", empty=("/tmp", "/run"), shown=seen, writable=written)

    @property
    def command(self) -> list[str]:
        """What stands before the command that sees it."""
        mounts = ["--bind" if self.writes_root else "--ro-bind", self.root, "/"] if self.root is not None else []
        mounts += ["--dev", "/dev", "--proc", "/proc"]
        mounts += [part for each in self.empty for part in ("--tmpfs", each)]
        mounts += [part for each in self.shown for part in ("--ro-bind-try", each, each)]
        mounts += ["--bind", self.writable, self.writable] if self.writable is not None else []
        alone = ["--unshare-all", "--die-with-parent", "--new-session"]
        return [shutil.which("bwrap") or "bwrap", *alone, *mounts, "--chdir", self.begins]

    def flaw(self, *command: str) -> str | None:
        """Why this machine does not show it to a command, which does nothing; None where it does."""
        if shutil.which("bwrap") is None:
            return "bubblewrap is not installed (its command is bwrap)"
        argv = [*self.command, *(command or ("true",))]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
        if done.returncode == 0:
            return None
        return f"bubblewrap does not work here, which needs unprivileged user namespaces: {done.stderr.strip()}"
