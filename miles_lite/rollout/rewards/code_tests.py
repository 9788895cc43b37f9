"""Programs that a model wrote, run against their row's tests.

Invariant: a program runs in a process of its own, with limits on time, memory, files and processes, in an empty folder
and environment; with bubblewrap it also sees no network and may write nowhere else. What it does is a reward, not a
failure; only a sandbox that cannot start is one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miles_lite.process.json_types import JsonMapping
from miles_lite.rollout.rewards.answer import Answer
from miles_lite.rollout.rewards.final_answer import after_thinking
from miles_lite.sandboxes.bubblewrap import PYTHON, View

SECONDS = 6.0
"""Of one test, where its row's metadata has no `timeout`."""
MEMORY, FILE, OUTPUT = 1 << 30, 1 << 24, 1 << 20
"""Bytes of address space, of a written file, and of output that is compared."""
PROCESSES = 256
"""That it may start, threads counted; the kernel lets root have more."""
_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_CALL = "\nimport json as _json\nprint(_json.dumps({name}(*_json.loads({arguments!r}))))\n"


@dataclass(frozen=True, slots=True)
class Test:
    """A program's end, its input, and whether what it printed will do."""

    source: str
    stdin: str
    passes: Callable[[str], bool]


def code(answer: Answer) -> dict[str, float]:
    """`score` is 1 when the last fenced program passes all tests of the row, `passed` the share that it passes.

    Tests are the metadata's `tests`, or the label, as an object or its JSON:

        {"inputs": [...], "outputs": [...]}                  what is read, and what is to be printed
        {"inputs": [...], "outputs": [...], "fn_name": NAME}  arguments, and what the function is to return
        ["assert f(1) == 2", ...] or "def check(f): ..."      lines that raise; `entry_point` is what check gets

    Raises ValueError for tests of another form.
    """
    text = after_thinking(answer.response) or answer.response
    blocks = _BLOCK.findall(text)
    tests = read_tests(answer.metadata.get("tests", answer.label), answer.metadata)
    if not blocks:
        return {"score": 0.0, "passed": 0.0}
    seconds = float(answer.metadata.get("timeout", SECONDS))
    passed = [passes(blocks[-1], test, seconds=seconds) for test in tests]
    return {"score": float(all(passed)), "passed": sum(passed) / len(passed)}


def read_tests(given: Any, metadata: JsonMapping) -> list[Test]:
    """The tests of a row. Raises ValueError."""
    with contextlib.suppress(ValueError):
        given = json.loads(given) if isinstance(given, str) else given
    if isinstance(given, str) and given.strip():
        entry = metadata.get("entry_point")
        return [_to_its_end(f"{given}\n" + (f"check({entry})\n" if entry else ""))]
    if isinstance(given, list) and given and all(isinstance(line, str) for line in given):
        return [_to_its_end(line) for line in given]
    if isinstance(given, dict) and given.get("inputs") and len(given["inputs"]) == len(given.get("outputs", ())):
        name = given.get("fn_name") or metadata.get("fn_name")
        return [_pair(name, each, out) for each, out in zip(given["inputs"], given["outputs"], strict=True)]
    raise ValueError("code needs tests: lines that assert, or an object with inputs and outputs of one length")


def _to_its_end(lines: str) -> Test:
    """Lines that must not raise, and must be reached and left: a program that exits before them has not passed."""
    mark = secrets.token_hex(16)
    return Test(f"\n{lines}\nprint({mark!r})\n", "", lambda printed: _lines(printed)[-1:] == [mark])


def _pair(name: str | None, given: Any, wanted: Any) -> Test:
    if name is None:
        stdin = given if isinstance(given, str) else "\n".join(map(str, given))
        lines = _lines(wanted if isinstance(wanted, str) else "\n".join(map(str, wanted)))
        return Test("", stdin, lambda printed: _lines(printed) == lines)
    arguments = json.dumps(given if isinstance(given, list) else [given])
    return Test(_CALL.format(name=name, arguments=arguments), "", lambda printed: _returned(printed, wanted))


def passes(program: str, test: Test, *, seconds: float) -> bool:
    """Run a program with a test's end behind it."""
    with tempfile.TemporaryDirectory(prefix="miles_lite-code-") as folder:
        Path(folder, "main.py").write_text(program + test.source, encoding="utf-8", errors="replace")
        with tempfile.TemporaryFile() as printed:  # it has no name that the program could put something else under
            process = subprocess.Popen(
                [*_sandbox(folder), sys.executable, "-I", "main.py"],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.DEVNULL,
                env={"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8"},
                start_new_session=True,
                preexec_fn=functools.partial(_limit, seconds, _running() + PROCESSES),
            )
            try:
                process.communicate(test.stdin.encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                return False
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            printed.seek(0)
            said = printed.read(OUTPUT).decode(errors="replace")
        return process.returncode == 0 and test.passes(said)


@functools.cache
def sandboxed() -> bool:
    """Whether bubblewrap works on this machine."""
    with tempfile.TemporaryDirectory(prefix="miles_lite-code-") as folder:
        return _view(folder).flaw(sys.executable, "-I", "-c", "") is None


def _sandbox(folder: str) -> list[str]:
    return _view(folder).command if sandboxed() else []


def _view(folder: str) -> View:
    return View.of_machine(folder, shown=PYTHON)


def _running() -> int:
    """Threads of this user, which a limit on processes counts."""
    count = 0
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            count += len(os.listdir(each / "task")) if each.stat().st_uid == os.getuid() else 0
    return count


def _limit(seconds: float, processes: int) -> None:
    """In the child, before the program: hard limits of its own."""
    processor = max(1, int(seconds + 1))
    limits = {
        resource.RLIMIT_CPU: processor,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: processes,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _returned(printed: str, wanted: object) -> bool:
    last = printed.strip().rpartition("\n")[2]
    with contextlib.suppress(ValueError):
        value = json.loads(last)
        alternatives: Sequence[Any] = (wanted, wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted)
        return any(value == each for each in alternatives)
    return False
