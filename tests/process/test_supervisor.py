"""A process that ends, hangs or cannot start, and the one that keeps it alive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from miles_lite.errors import UserError
from miles_lite.process.supervisor import Program, Supervised
from tests.process.supervised_program import Script
from tests.processes import runs
from tests.router.upstream import eventually

pytestmark = pytest.mark.e2e
COMMAND = (sys.executable, "-m", "tests.process.supervised_program")


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """The file of the program's children. None of them is left at the end."""
    file = tmp_path / "notes"
    yield file
    children = [int(pid) for pid in file.read_text().split()]
    assert children
    asyncio.run(eventually(lambda: not any(map(runs, children)), "the program's children to end"))


@contextlib.asynccontextmanager
async def supervised(notes: Path, *acts: str, silence: float = 30.0, down: list[str] | None = None):
    @contextlib.asynccontextmanager
    async def standing_in(listener: socket.socket) -> AsyncIterator[None]:
        if down is not None:
            down.append("down")
        assert listener.fileno() >= 0
        yield
        if down is not None:
            down.append("up")

    def stand_in(listener: socket.socket) -> AbstractAsyncContextManager[None]:
        return standing_in(listener)

    program = Program(name="the program", command=COMMAND, spec=Script(notes, acts))
    one = Supervised(program, stand_in=stand_in, silence=silence)
    try:
        await one.start(socket.create_server(("127.0.0.1", 0)))
        yield one
    finally:
        await one.stop()
    assert one.pid is None


async def test_a_process_that_ends_comes_back_and_takes_what_it_started_with_it(
    notes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down: list[str] = []
    async with supervised(notes, "end", "refuse", "serve", down=down) as one:
        first = one.pid
        await eventually(lambda: down == ["down", "up"], "the program to serve again")
        *ended, child = [int(pid) for pid in notes.read_text().split()]
        await eventually(lambda: not any(map(runs, ended)), "the first two starts' children to end")
        assert len(ended) == 2
        assert runs(child)
        assert one.restarts == 1
        assert one.pid != first
    assert "the program (process" in caplog.text
    assert "ended with exit code 0; starting it again" in caplog.text
    assert "the program cannot start: there is no milk; it is tried again after" in caplog.text


async def test_a_process_whose_loop_hangs_is_replaced(notes: Path, caplog: pytest.LogCaptureFixture) -> None:
    down: list[str] = []
    async with supervised(notes, "hang", "serve", silence=4.0, down=down) as one:
        hung = one.pid
        await eventually(lambda: down == ["down", "up"], "the program to serve again")
        assert hung is not None
        assert not runs(hung)
    assert "hangs: waited 4 s for a sign of life from its event loop; starting it again" in caplog.text


async def test_silence_that_is_the_parents_own_does_not_count(notes: Path) -> None:
    async with supervised(notes, "serve", silence=3.0) as one:
        time.sleep(4.0)
        await asyncio.sleep(0.5)
        assert one.restarts == 0


async def test_a_process_that_cannot_start_says_why_and_nothing_is_left(notes: Path) -> None:
    with pytest.raises(UserError, match="the program cannot start: there is no milk"):
        async with supervised(notes, "refuse"):
            pass
