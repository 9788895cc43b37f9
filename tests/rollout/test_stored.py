"""Samples in Ray's object store: who trains them has them, also when who made them is gone."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import ray

from miles_lite.config.training import Algorithm
from miles_lite.errors import Where
from miles_lite.process.remote import Remote
from miles_lite.rollout.agent_calls import Lines, Ran, Running, Task
from miles_lite.rollout.prompts import Prompt
from miles_lite.sample import Rollout, Status
from miles_lite.train.batching import Batch, Place, fetch, make_batches
from miles_lite.train.flops import Flops
from tests.clusters import local_cluster
from tests.rollout.helpers import make_sample

pytestmark = pytest.mark.e2e
LONG = 200_000
"""Tokens of a sample that is too large to travel with a call's answer."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(cpus=2, object_store_memory=200 << 20):
        yield


@ray.remote(num_cpus=0)
class Worker(Running):
    """Runs what an agent worker would."""

    def __init__(self) -> None:
        super().__init__(self.run)

    async def process(self) -> int:
        return os.getpid()

    async def run(self, task: Task) -> Ran:
        samples = [make_sample(LONG + task.rollout_index, 100), make_sample(10, 3)]
        rollout = Rollout(task.rollout_index, task.group_index, [sample.record() for sample in samples], reward=1.0)
        rollout.status = Status.COMPLETED
        if task.prompt.input == "locks":
            rollout.metadata["lock"] = threading.Lock()
        return rollout, samples, b""


@ray.remote(num_cpus=0)
class Owner:
    """Has agents run, as the manager has."""

    async def run(self, worker: Any, how: list[str]) -> list[Rollout]:
        tasks = [Task(index, 0, Prompt(row=1, input=each), "", {}) for index, each in enumerate(how)]
        lines = Lines()
        return list(await asyncio.gather(*(lines.run(Remote(worker), task) for task in tasks)))


@ray.remote(num_cpus=1)
def lengths(batch: Batch[Place]) -> list[int]:
    """What a rank gets."""
    return [int(np.count_nonzero(sample.tokens >= 0)) for sample in fetch(batch).samples]


def test_a_dead_worker_takes_no_sample_with_it_and_ranks_fetch_their_own() -> None:
    worker, owner = Worker.remote(), Owner.remote()  # type: ignore[attr-defined]
    rollouts: list[Rollout] = ray.get(owner.run.remote(worker, ["well", "well", "well"]))
    os.kill(ray.get(worker.process.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(worker.process.remote())
    assert all(rollout.status is Status.COMPLETED and rollout.trained_tokens == 103 for rollout in rollouts)
    batches = make_batches(
        0, rollouts, [0.0] * 3, ranks=2, global_batch_size=3, options=Algorithm(), flops=Flops(1.0, 0.0)
    )
    fetched: list[list[int]] = ray.get([lengths.remote(batch) for batch in batches])
    assert sorted(chain.from_iterable(fetched)) == [10, 10, 10, LONG, LONG + 1, LONG + 2]
    assert all(map(len, fetched))


def test_what_cannot_be_brought_over_and_what_dies_fails_alone() -> None:
    worker, owner = Worker.remote(), Owner.remote()  # type: ignore[attr-defined]
    locks, well = ray.get(owner.run.remote(worker, ["locks", "well"]))
    assert (locks.status, locks.stored) == (Status.FAILED, None)
    assert locks.failure is not None
    assert locks.failure.where is Where.AGENT
    assert "what the agent returned is lost: TypeError" in locks.failure.why
    assert well.status is Status.COMPLETED
    ray.kill(worker)
    (died,) = ray.get(owner.run.remote(worker, ["well"]))
    assert died.status is Status.FAILED
    assert str(died.failure).startswith("agent: the agent worker died: ")


async def test_a_failed_attempt_leaves_no_error_that_ray_finds_unhandled() -> None:
    said: list[str] = []
    hearer = logging.Handler()
    hearer.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("ray._private.worker")
    log.addHandler(hearer)
    try:
        worker = Remote[Any](Worker.remote())  # type: ignore[attr-defined]
        rollout = await Lines().run(worker, Task(0, 0, Prompt(row=1, input="locks"), "", {}))
        assert rollout.status is Status.FAILED
        for _ in range(20):
            gc.collect()
            await asyncio.sleep(0.05)
    finally:
        log.removeHandler(hearer)
    assert [message for message in said if "Unhandled" in message] == []
