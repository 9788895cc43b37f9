from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.waiting import wait_until

TESTS = Path(__file__).parent
RACES = {
    *("cmdline", "environ", "is_running", "memory_maps", "parents"),  # of a process
    *("process_iter", "wait_procs"),  # of psutil
}


@pytest.fixture(params=["a zombie", "gone"])
def ended(request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    """A process that ended after it was found, and whose parent has heard of it or not yet."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        process = psutil.Process(started.pid)
        assert processes.running(process)
        started.kill()
        if request.param == "gone":
            started.wait()
        else:
            wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "it to end")
        yield process


def test_a_process_that_has_ended_shows_nothing(ended: psutil.Process) -> None:
    assert processes.words_of(ended) == []
    assert processes.command_of(ended) == ""
    assert processes.variables_of(ended) == {}
    assert processes.mapped_by(ended) == []
    assert processes.below(ended.pid) == []
    assert not processes.running(ended)
    assert not processes.runs(ended.pid)
    assert processes.running_after([ended], seconds=0) == []
    processes.kill([ended])
    assert set(processes.above(ended)) <= {psutil.Process(), *psutil.Process().parents()}


def test_a_process_is_found_by_its_words_and_its_place() -> None:
    words = [sys.executable, "-c", "input()", f"mark-{os.getpid()}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={"A": "b"}) as started:
        wait_until(lambda: processes.called(words[-1]), "the kernel to show its words")
        (found,) = processes.called(words[-1])
        assert processes.words_of(found) == words
        assert processes.variables_of(found)["A"] == "b"
        assert found in processes.below(os.getpid())
        assert processes.above(found)[0].pid == os.getpid()
        assert processes.tree_of(started.pid) == [found]
        assert processes.running_after([found], seconds=0) == [found]
        started.kill()
        assert processes.running_after([found]) == []


def test_tests_look_at_processes_in_one_place() -> None:
    """What is asked of a process that may end meanwhile is asked where that is no error."""
    files = set(TESTS.rglob("*.py")) - {Path(processes.__file__), Path(__file__)}
    asked = {
        f"{file.relative_to(TESTS)}:{node.lineno} {node.func.attr}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RACES
    }
    assert not asked
