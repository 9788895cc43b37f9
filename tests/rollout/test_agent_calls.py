"""Rollouts that share calls: each comes back once, with what is its own."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
import ray

from miles_lite.errors import Where
from miles_lite.process.remote import Remote
from miles_lite.rollout.agent_calls import MOST, Line, Ran, Running, Task
from miles_lite.rollout.prompts import Prompt
from miles_lite.sample import Rollout, Status
from tests.rollout.helpers import Here, make_rollout, make_sample
from tests.waiting import until


def task(number: int, *, told: bool = True) -> Task:
    return Task(number, number // 4, Prompt(row=number, input="x"), "", {}, keep_transcript=told)


class Agents:
    """What runs rollouts, for as many turns of the loop as chance says; `running` are those at work."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.running: set[int] = set()
        self.began: list[int] = []

    async def run(self, given: Task) -> Ran:
        number = given.rollout_index
        self.running.add(number)
        self.began.append(number)
        try:
            await asyncio.sleep(self._chance.choice([0.0, 0.0, 0.001, 0.02]))
        finally:
            self.running.discard(number)
        sample = make_sample(4 + number, 2)
        rollout = make_rollout(number, given.group_index, sample, status=Status.COMPLETED)
        rollout.stored = None
        return rollout, [sample], str(number).encode()


def remote(here: Here) -> Remote[Any]:
    actor: Any = here
    return actor  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", range(8))
async def test_each_comes_back_once_with_its_own_and_what_is_dropped_ends(seed: int) -> None:
    chance = random.Random(seed)
    agents = Agents(chance)
    line = Line(remote(Here(agents.run)))
    running: dict[int, asyncio.Task[Rollout]] = {}
    dropped: set[int] = set()
    for number in range(120):
        running[number] = asyncio.create_task(line.run(task(number)))
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.0, 0.004]))
        if chance.random() < 0.2:
            other = chance.randrange(number + 1)
            if running[other].cancel():
                dropped.add(other)
    async with asyncio.timeout(120):
        ended = await asyncio.gather(*running.values(), return_exceptions=True)
        while agents.running:
            await asyncio.sleep(0.01)
    for number, rollout in enumerate(ended):
        if number in dropped:
            assert isinstance(rollout, asyncio.CancelledError)
            continue
        assert isinstance(rollout, Rollout)
        assert (rollout.index, rollout.status, rollout.samples[0].length) == (number, Status.COMPLETED, 4 + number)
        assert rollout.stored is not None
        assert rollout.transcript is not None
        samples, turns = rollout.stored.reference.result(), rollout.transcript.turns.reference.result()  # type: ignore[attr-defined]
        assert (len(samples[0]), turns) == (4 + number, str(number).encode())
    assert len(agents.began) == len(set(agents.began)), "one ran twice"
    assert not line._waiting
    assert not line._new


async def test_what_starts_at_once_or_ends_at_once_shares_a_call() -> None:
    go = asyncio.Event()

    async def run(given: Task) -> Ran:
        await go.wait()
        return make_rollout(given.rollout_index, 0), [], b""

    here = Here(run)
    line = Line(remote(here))
    all_of_them = asyncio.gather(*(line.run(task(number)) for number in range(3 * MOST)))
    await until(lambda: here.calls, "a call")
    await asyncio.sleep(0.05)
    assert here.calls == 1
    go.set()
    assert [rollout.index for rollout in await all_of_them] == list(range(3 * MOST))
    assert here.calls == 3


async def test_what_cannot_be_brought_over_fails_alone() -> None:
    async def run(given: Task) -> Ran:
        if given.rollout_index == 2:
            raise OSError("the disk is gone")
        rollout = make_rollout(given.rollout_index, 0, make_sample(4, 2), status=Status.COMPLETED)
        rollout.stored = None
        if given.rollout_index == 1:
            rollout.metadata["lock"] = threading.Lock()
        return rollout, [make_sample(4, 2)], b""

    line = Line(remote(Here(run)))
    well, locks, raises = await asyncio.gather(*(line.run(task(number)) for number in range(3)))
    assert well.status is Status.COMPLETED
    for lost, why in ((locks, "TypeError: cannot pickle"), (raises, "OSError: the disk is gone")):
        assert (lost.status, lost.stored, lost.samples) == (Status.FAILED, None, [])
        assert lost.failure is not None
        assert lost.failure.where is Where.AGENT
        assert lost.failure.why.startswith(f"what the agent returned is lost: {why}")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ray.exceptions.ActorDiedError(), "the agent worker died: "),
        (ray.exceptions.RaySystemError("no room"), "what the agent returned is lost: RaySystemError"),
    ],
)
async def test_a_call_that_fails_loses_what_went_with_it_and_other_attempts_come_back(
    error: Exception, why: str
) -> None:
    """A question, which all that run wait for; and what is told beside one, which only the new ones do."""
    go = asyncio.Event()

    async def run(given: Task) -> Ran:
        await go.wait()
        return make_rollout(given.rollout_index, 0, status=Status.COMPLETED), [], b""

    here = Here(run)
    line = Line(remote(here))
    here.fails = [error]
    lost = list(await asyncio.gather(*(line.run(task(number)) for number in range(2))))
    well, before = asyncio.create_task(line.run(task(0))), here.calls
    await until(lambda: here.calls > before, "the question")
    here.fails = [error]
    lost.append(await line.run(task(2)))
    for rollout in lost:
        assert rollout.failure is not None
        assert rollout.failure.why.startswith(why)
    again = asyncio.create_task(line.run(task(2)))
    go.set()
    assert [rollout.status for rollout in await asyncio.gather(well, again)] == [Status.COMPLETED] * 2


async def test_who_asks_anew_gets_what_the_one_before_did_not_take() -> None:
    """A connection breaks, and the worker goes on: the question that nobody waits for any longer takes no answer."""
    go = asyncio.Event()

    async def run(given: Task) -> Ran:
        await go.wait()
        return make_rollout(given.rollout_index, 0), [], b""

    running = Running(run)
    await running.submit([task(0)], [])
    before = asyncio.create_task(running.exchange([], []))
    await asyncio.sleep(0)
    asked = asyncio.create_task(running.exchange([], []))
    await asyncio.sleep(0)
    go.set()
    nothing, answer = await asyncio.gather(before, asked)
    assert (nothing[0], [told.number for told in answer[0]]) == ([], [0])
    assert len(nothing) == len(answer) == 1 + 2 * MOST


async def test_an_error_of_our_own_reaches_all_who_wait(caplog: pytest.LogCaptureFixture) -> None:
    """Who says nothing of it lets them wait for ever."""
    here = Here(Agents(random.Random(0)).run)
    line = Line(remote(here))
    here.fails = [TypeError("this cannot be sent")]
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*(line.run(task(number)) for number in range(3)), return_exceptions=True)
        assert [str(error) for error in ended] == ["this cannot be sent"] * 3
        assert (await line.run(task(3))).status is Status.COMPLETED
