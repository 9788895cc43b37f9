"""Agent functions that misbehave, beside one that does not: each ends its own call alone."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from miles_lite.rollout import agent_loop, agent_output
from miles_lite.rollout.agent_loop import AgentError, AgentLoop, LoopLostError, OutOfTimeError
from tests.waiting import until

Work = Callable[[], Awaitable[Any]]


async def good() -> str:
    for _ in range(20):
        await asyncio.sleep(0.05)
    return "done"


async def cancels() -> None:
    raise asyncio.CancelledError


async def exits() -> None:
    sys.exit(3)


async def exits_in_a_task_of_its_own() -> None:
    await asyncio.gather(asyncio.create_task(exits()), asyncio.sleep(10))


async def interrupts() -> None:
    raise KeyboardInterrupt


class Panic(BaseException):
    """As Rust's panics arrive, and what test frameworks raise."""


async def panics() -> None:
    raise Panic


async def closes() -> None:
    raise GeneratorExit


async def raises_several() -> None:
    raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])


async def closes_stdout() -> str:
    sys.stdout.close()
    print("still open")
    return "fine"


async def spins() -> None:
    while True:
        pass


async def sleeps_again_and_again() -> None:
    while True:
        time.sleep(0.05)


async def floods() -> None:
    while True:
        print("x" * 10_000, end="")


async def fails() -> None:
    raise ValueError("no")


async def takes_long() -> None:
    await asyncio.Event().wait()


async def clings() -> None:
    while True:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            if threading.current_thread().name != "agents":
                raise


ENDS: dict[Work, tuple[type[BaseException], str | None]] = {
    cancels: (AgentError, "CancelledError"),
    exits: (AgentError, r"SystemExit\(3\)"),
    exits_in_a_task_of_its_own: (AgentError, r"SystemExit\(3\)"),
    interrupts: (AgentError, "KeyboardInterrupt"),
    panics: (AgentError, "Panic"),
    closes: (AgentError, "GeneratorExit"),
    raises_several: (AgentError, "BaseExceptionGroup"),
    spins: (AgentError, r"blocked the event loop in .*test_agent_loop\.py:\d+ \(spins\)"),
    sleeps_again_and_again: (AgentError, r"blocked the event loop in .*\(sleeps_again_and_again\): use asyncio.to_thr"),
    floods: (agent_output.OutputError, "printed more than"),
    fails: (ValueError, "no"),
    takes_long: (OutOfTimeError, None),
    clings: (OutOfTimeError, None),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_loop, "STILL_SECONDS", 0.6)
    monkeypatch.setattr(agent_loop, "GRACE", 2.0)
    monkeypatch.setattr(agent_output, "LIMIT", 1 << 20)


async def together(*works: Work) -> list[Any]:
    """What becomes of each, started at once; a good one has all the time it may need."""
    agents = AgentLoop()
    calls = [agents.run(work, timeout=60.0 if work is good else 3.0) for work in works]
    try:
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 90)
    finally:
        agents.close()


@pytest.mark.parametrize("bad", ENDS, ids=lambda work: work.__name__)
async def test_a_function_that_misbehaves_ends_its_own_call_alone(
    bad: Work, capsys: pytest.CaptureFixture[str]
) -> None:
    with agent_output.bounded_output():
        first, ended, last = await together(good, bad, good)
    assert (first, last) == ("done", "done")
    kind, words = ENDS[bad]
    with pytest.raises(kind, match=words):
        raise ended


async def test_an_agent_that_closes_stdout_closes_it_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with agent_output.bounded_output():
        assert await together(closes_stdout) == ["fine"]
    print("still open")
    assert capsys.readouterr().out == "still open\n" * 2


async def test_the_time_for_which_another_one_blocks_does_not_count() -> None:
    async def blocks() -> str:
        time.sleep(3.0)
        return "awake"

    async def takes_its_time() -> str:
        await asyncio.sleep(1.0)
        return "done"

    agents = AgentLoop()
    calls = (agents.run(blocks, timeout=60), agents.run(takes_its_time, timeout=3.5))
    first, last = await asyncio.gather(*calls)
    assert (first, last) == ("awake", "done")
    agents.close()


async def test_a_loop_that_cannot_be_had_back_is_replaced_and_who_lost_it_may_run_again() -> None:
    let_go = threading.Event()

    async def waits_in_foreign_code() -> None:
        let_go.wait(20.0)

    agents = AgentLoop()
    calls = [agents.run(work, timeout=1.5) for work in (waits_in_foreign_code, takes_long)]
    blocked, lost = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(blocked, AgentError)
    assert "blocked the event loop" in str(blocked)
    assert isinstance(lost, LoopLostError)
    assert await agents.run(good, timeout=10) == "done"
    agents.close()
    let_go.set()


async def test_a_loop_that_was_given_up_takes_no_step_more() -> None:
    let_go, steps = threading.Event(), []

    async def waits_in_foreign_code() -> None:
        let_go.wait(60.0)

    async def late() -> None:
        steps.append("late")

    agents, before = AgentLoop(), set(threading.enumerate())
    calls = [agents.run(work, timeout=1.5) for work in (waits_in_foreign_code, late)]
    _, lost = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(lost, LoopLostError)
    let_go.set()
    await until(lambda: not before.symmetric_difference(threading.enumerate()), "its thread to end")
    assert steps == []


@pytest.mark.parametrize("foreign", [False, True])
async def test_what_a_function_leaves_behind_costs_the_others_no_time(foreign: bool) -> None:
    """Its call is over, so that no time of its own ends it."""
    let_go = threading.Event()

    async def stays() -> None:
        await asyncio.sleep(0.2)
        if foreign:
            let_go.wait(60.0)
        await spins()

    async def leaves() -> asyncio.Task[None]:
        return asyncio.create_task(stays())

    agents = AgentLoop()
    calls = [agents.run(work, timeout=3.0) for work in (leaves, good, takes_long)]
    _, *others = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
    assert [type(each) for each in others] == [LoopLostError] * 2 if foreign else [str, OutOfTimeError]
    let_go.set()
    assert await agents.run(good, timeout=60) == "done"
    agents.close()


async def test_a_child_that_a_function_forks_and_forgets_ends_and_takes_no_step_of_its_parents(tmp_path: Any) -> None:
    steps = tmp_path / "steps"
    child: list[int] = []

    async def forks() -> str:
        if pid := os.fork():
            child.append(pid)
        await asyncio.sleep(0.2)
        with steps.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return "parent"

    assert await together(good, forks, good) == ["done", "parent", "done"]
    assert os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]) == 1
    assert steps.read_text() == f"{os.getpid()}\n"


async def test_a_call_that_is_cancelled_cancels_its_function() -> None:
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    agents = AgentLoop()
    call = asyncio.create_task(agents.run(work, timeout=60))
    assert await asyncio.to_thread(began.wait, 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(ended.wait, 60)
    agents.close()


@pytest.mark.parametrize("turns", range(5))
def test_a_call_is_closed_in_silence_however_far_it_came(turns: int) -> None:
    """As the interpreter closes those of a loop that has gone, also once they were told to end."""
    loop = asyncio.new_event_loop()
    call = agent_loop._act(good, agent_loop.Caller())
    task = loop.create_task(call)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    for turn in range(turns):
        if turn == 2:
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
    call.close()
    for running in asyncio.all_tasks(loop) - {task}:
        running.cancel()
        loop.run_until_complete(asyncio.wait([running]))
    loop.close()
