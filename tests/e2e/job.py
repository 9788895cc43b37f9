"""Starts the real command line on the example's tasks, and looks at what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from miles_lite.process.stacks import write_stacks
from miles_lite.stack.cluster import DASHBOARD
from tests.processes import command_of, mapped_by, others, running, variables_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "swe-agent"
MARK = "MILES_LITE_TEST_RUN"
"""An environment variable that everything a test starts inherits: leftovers are found by it, never by name."""


@dataclass(frozen=True)
class Prepared:
    """A folder with model/, train.jsonl and heldout.jsonl."""

    folder: Path

    def flags(self, run_dir: Path, *extra: str, agent: str = "plain.py") -> list[str]:
        """A small run's. `agent` is one of the example's: mini-swe-agent costs each process that imports it 4 s of CPU,
        and is for where it is the subject."""
        return [
            *("--hf-checkpoint", str(self.folder / "model"), "--prompt-data", str(self.folder / "train.jsonl")),
            *("--custom-agent-function-path", f"{EXAMPLE / agent}:run", "--run-dir", str(run_dir)),
            *("--tito-allowed-append-roles", "tool", "user", "--rollout-max-response-len", "48"),
            *("--actor-num-gpus-per-node", "2", "--colocate", "--rollout-num-gpus", "1"),
            *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--num-steps-per-rollout", "2"),
            *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "4096", "--lr", "1e-3", "--rollout-shuffle"),
            *("--rollout-max-context-len", "1024", "--rollout-timeout", "120"),
            *extra,
        ]


def environment(mark: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), MARK: mark, "PYTHONUNBUFFERED": "1", DASHBOARD: "0"}


def start(command: str, flags: list[str], *, mark: str, log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """`python -m miles_lite COMMAND FLAGS` in a session of its own; output goes to `log`."""
    argv = [sys.executable, "-m", "miles_lite", command, *flags]
    with log.open("wb") as stream:
        return subprocess.Popen(
            argv,
            env=environment(mark) | variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )


def run(command: str, flags: list[str], *, mark: str, log: Path, timeout: float = 300) -> str:
    """Run to the end; returns the output. Fails the test when the exit code is not 0."""
    process = start(command, flags, mark=mark, log=log)
    code = ended(process, log, within=timeout)
    text = log.read_text(errors="replace")
    assert code == 0, f"exit code {code}:\n{text[-6000:]}"
    return text


@contextmanager
def serving(model: Path, *flags: str, folder: Path, mark: str) -> Iterator[str]:
    """The URL of the session servers of `miles-lite serve`, which writes into `folder` and ends with Ctrl-C."""
    log = folder / "log"
    process = start(
        "serve", ["--hf-checkpoint", str(model), "--run-dir", str(folder / "run"), *flags], mark=mark, log=log
    )

    def sessions() -> str | None:
        found = re.search(r"(?ms)^sessions +(\S+)\s.*^ready", log.read_text())
        return found[1] if found else None

    try:
        yield wait_for("the servers", sessions, timeout=200, process=process, log=log)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        code = ended(process, log)
    assert code == 0
    assert_nothing_left(mark)


def ended(process: subprocess.Popen[bytes], log: Path, *, within: float = 60) -> int:
    """Its exit code. One that does not end in time fails the test, with its output and what its threads are at."""
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        stacks = "".join(path.read_text() for path in write_stacks(log.parent / "stacks", {"hangs": process.pid}))
        text = log.read_text(errors="replace")
        raise AssertionError(f"has not ended in {within} s:\n{text[-6000:]}\n{stacks}") from None


def wait_for(what: str, condition: Any, *, timeout: float, process: subprocess.Popen[bytes], log: Path) -> Any:
    """Poll `condition` until it is true; its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        assert process.poll() is None, f"ended while waiting for {what}:\n{log.read_text(errors='replace')[-6000:]}"
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout} s for {what}:\n{log.read_text(errors='replace')[-6000:]}")


def marked(mark: str) -> list[psutil.Process]:
    """Live processes that a test's run started, however deep."""
    return [process for process in others() if variables_of(process).get(MARK) == mark and running(process)]


def marked_as(mark: str, words: str) -> list[psutil.Process]:
    """Those of them whose command line holds `words`."""
    return [process for process in marked(mark) if words in command_of(process)]


def segments(mark: str) -> set[Path]:
    """The files in shared memory that a run's processes have mapped."""
    mapped = (path for process in marked(mark) for path in mapped_by(process))
    return {Path(path) for path in mapped if path.startswith("/dev/shm/sgl")}


def left_running(mark: str, *, within: float = 30.0) -> list[psutil.Process]:
    """Those that have not ended within so many seconds."""
    deadline = time.monotonic() + within
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def assert_nothing_left(mark: str, *, within: float = 30.0) -> None:
    left = left_running(mark, within=within)
    assert not left, "still running: " + "\n".join(command_of(process)[:200] for process in left)


def rows(run_dir: Path) -> list[dict[str, float]]:
    """What it has logged so far; a line that it is writing comes later."""
    file = run_dir / "metrics.jsonl"
    text = file.read_bytes() if file.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def values(run_dir: Path, name: str) -> list[float]:
    return [row[name] for row in rows(run_dir) if name in row]
