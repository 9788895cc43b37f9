"""What can be known of a process of ours that has died, from what it left behind on this machine.

Invariant: nothing here raises for what is missing; a reason that is not known is not made up.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

_LAST_WORDS = re.compile(r"^(Fatal Python error: .*|[\w.]*(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE)
LOG_END = 4000
"""Characters."""
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


class DiedError(Exception):
    """An actor that a run cannot do without has died; `error` is Ray's."""

    def __init__(self, name: str, error: RayActorError) -> None:
        super().__init__(f"{name} has died")
        self.name, self.error = name, error

    def __reduce__(self) -> tuple[type[DiedError], tuple[str, RayActorError]]:
        return type(self), (self.name, self.error)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """In its block the actor `name` is called. Raises DiedError when it is dead."""
    try:
        yield
    except RayActorError as error:
        if isinstance(error, RayTaskError):  # it lives, and tells of another that died
            raise
        raise DiedError(name, error) from error


def out_of_memory_kills() -> int:
    """How many processes the kernel has ended for want of memory, here and so far."""
    total = 0
    for path in _COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total


def logs_of(error: RayActorError, logs: Path | None) -> list[Path]:
    """What the actor's process wrote, in Ray's log folder."""
    pid = re.search(r"pid: (\d+)", str(error))
    return sorted(logs.glob(f"worker-*-{pid[1]}.err")) if logs is not None and pid else []


def last_lines(error: RayActorError, logs: Path | None) -> str:
    """The end of that."""
    return "".join(file.read_text(errors="replace")[-LOG_END:] for file in logs_of(error, logs)[-1:])


def describe_death(error: RayActorError, *, logs: Path | None, killed_before: int) -> str:
    """How an actor's process ended. `logs`: Ray's log folder; `killed_before`: `out_of_memory_kills` when it lived."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return f"Ray ended it for want of memory: {text.splitlines()[0]}"
    if getattr(error, "_actor_init_failed", False):
        return text.rstrip().splitlines()[-1]
    files = logs_of(error, logs)
    words = [found[-1] for file in files if (found := _LAST_WORDS.findall(file.read_text(errors="replace")[-20_000:]))]
    where = f"; its log is {files[-1]}" if files else ""
    if words:
        return f"{words[-1].strip()}{where}"
    if code := re.search(r"exits with an exit code (\S+?)\.?(?:\s|$)", text):
        return f"it exited with code {code[1]}{where}"
    if out_of_memory_kills() > killed_before:
        return f"the kernel ended a process for want of memory meanwhile{where}"
    if "was killed by" in text and "ray.kill" in text:
        return "ray.kill ended it"
    return f"its process was ended from outside (SIGKILL) or crashed without a word{where}"


def how_to_go_on(command: Sequence[str], *, save: str | None, saved: int | None) -> str:
    """What to do after a loss. `command`: this run's own; `saved`: the last rollout in the folder `save`."""
    if saved is None:
        begin = "" if save is not None else " with --save DIR --save-interval 1, with which a run goes on by itself"
        return f"Nothing was saved yet: start again{begin}: {shlex.join(command)}"
    return f"Go on from step {saved + 1}, the last that was saved: {shlex.join([*command, '--load', str(save)])}"
