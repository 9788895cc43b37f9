from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_lite.router.admission import Admission, QueueFullError
from miles_lite.router.backend import Worker
from miles_lite.router.policies import NoWorkerError, Placement
from miles_lite.router.registry import Registry

MOST = 2


def make(*workers: Worker, patience: float = 60.0, most: int = MOST) -> tuple[Registry, Admission]:
    registry = Registry()
    for worker in workers:
        registry.add(worker)
    return registry, Admission(registry, Placement(most=most), patience=patience)


async def hold(admission: Admission, key: str | None, until: asyncio.Event, order: list) -> None:
    async with admission.admit(key):
        order.append(key)
        await until.wait()


REQUEST = st.tuples(st.sampled_from("abc"), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, max_size=20), st.randoms(use_true_random=False))
async def test_no_worker_is_ever_over_its_cap_and_nothing_is_left_behind(requests, random):
    workers = [Worker(f"http://h:{index}") for index in range(2)]
    _, admission = make(*workers)
    order: list = []
    ends = [asyncio.Event() for _ in requests]
    tasks = [
        asyncio.create_task(hold(admission, key, end, order)) for (key, _), end in zip(requests, ends, strict=True)
    ]
    for index in random.sample(range(len(requests)), len(requests)):
        await asyncio.sleep(0)
        assert all(worker.in_flight <= MOST for worker in workers)
        tasks[index].cancel() if requests[index][1] else ends[index].set()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [worker.in_flight for worker in workers] == [0, 0]
    assert admission.waiting == 0


async def test_a_place_that_is_given_up_in_the_moment_it_is_given_goes_to_the_next():
    worker = Worker("http://h:1")
    _, admission = make(worker, most=1)
    order: list = []
    ends = {name: asyncio.Event() for name in "abc"}
    tasks = {}
    for name in "abc":
        tasks[name] = asyncio.create_task(hold(admission, name, ends[name], order))
        await asyncio.sleep(0)
    ends["a"].set()
    await tasks["a"]
    tasks["b"].cancel()
    ends["c"].set()
    await asyncio.wait_for(tasks["c"], 10)
    assert order in (["a", "c"], ["a", "b", "c"])
    assert worker.in_flight == 0


async def test_who_waits_hears_when_the_last_worker_fails():
    worker = Worker("http://h:1")
    _, admission = make(worker, most=1)
    end = asyncio.Event()
    first = asyncio.create_task(hold(admission, "a", end, []))
    await asyncio.sleep(0)
    second = asyncio.create_task(hold(admission, "b", end, []))
    await asyncio.sleep(0)
    worker.failed(patience=1)
    end.set()
    await first
    with pytest.raises(NoWorkerError, match="cannot be reached"):
        await asyncio.wait_for(second, 10)


async def test_waiting_ends_and_leaves_no_trace():
    worker = Worker("http://h:1")
    _, admission = make(worker, most=1, patience=0.05)
    end = asyncio.Event()
    first = asyncio.create_task(hold(admission, "a", end, []))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="for room"):
        await hold(admission, "b", end, [])
    end.set()
    await first
    assert admission.waiting == 0
    async with admission.admit("c") as target:
        assert target == (worker,)
