"""Signals in real processes: noted, looked at, and a bound for who does not look."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOOKS = """
import time
from miles_lite.process.stopping import Interrupts
with Interrupts() as interrupts:
    print("up", flush=True)
    while True:
        time.sleep(0.05)
        try:
            interrupts.check()
        except KeyboardInterrupt:
            print("stopping", flush=True)
            time.sleep(0.5)  # foreign code, in which no signal raises any more
            raise
"""
DOES_NOT_LOOK = """
import threading
from miles_lite.process.stopping import Interrupts
with Interrupts(deaf=0.5):
    print("up", flush=True)
    threading.Event().wait(60)
"""
OVERTIME = """
import sys, threading
from pathlib import Path
from miles_lite.process.stacks import write_stacks
from miles_lite.process.stopping import ends_within
print("up", flush=True)
with ends_within(0.5, 1, lambda: write_stacks(Path(sys.argv[1]), {}, own="it")):
    threading.Event().wait(60)
"""
DEAF_LOOP = """
import asyncio, sys
from pathlib import Path
from miles_lite.process.stacks import write_stacks
from miles_lite.process.stopping import ends_within
async def never_comes():
    await asyncio.Event().wait()
async def run():
    loop = asyncio.get_running_loop()
    with ends_within(0.5, 1, lambda: write_stacks(Path(sys.argv[1]), {}, own="it", loop=loop)):
        await never_comes()
print("up", flush=True)
asyncio.run(run())
"""
IN_TIME = """
from miles_lite.process.stopping import Interrupts, ends_within
with ends_within(30, 1), Interrupts():
    pass
print("up", flush=True)
"""


def ended(code: str, *signals: int, argument: Path | str = "") -> tuple[int, str, str]:
    """Exit code, output and errors of a process that gets `signals` once it is up."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(argument)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for at, number in enumerate(signals):
            if at:
                process.stdout.readline()
            process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_where_somebody_looks_and_a_second_one_changes_nothing(number: int) -> None:
    code, _, errors = ended(LOOKS, number, number)
    assert code in (130, -signal.SIGINT)  # how Python itself ends with KeyboardInterrupt
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_a_process_that_does_not_look_ends_all_the_same() -> None:
    assert ended(DOES_NOT_LOOK, signal.SIGINT) == (130, "", "interrupted\n")


@pytest.mark.parametrize(("code", "seen"), [(OVERTIME, "in wait"), (DEAF_LOOP, "in never_comes")])
def test_what_is_not_over_in_time_ends_the_process_and_leaves_what_it_was_at(
    code: str, seen: str, tmp_path: Path
) -> None:
    assert ended(code, argument=tmp_path) == (1, "", "error: not everything ended in time\n")
    assert seen in (tmp_path / "it.txt").read_text()


def test_what_is_over_in_time_leaves_nothing() -> None:
    assert ended(IN_TIME) == (0, "", "")
