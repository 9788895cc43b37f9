"""Samples that wait, saved and loaded by a process that never has them in its hands."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from miles_lite.config.rollouts import Data, Rollouts
from miles_lite.config.scheduling import Scheduling
from miles_lite.errors import UnavailableError, UserError, writing
from miles_lite.rollout import resume
from miles_lite.rollout.generate import Generator, schedule_of
from miles_lite.rollout.prompts import DataSource, Prompt
from miles_lite.rollout.stored import Stored
from miles_lite.sample import Group, Rollout, Sample, Status
from miles_lite.scheduler.accounts import Accounts
from miles_lite.stack.aside import aside, parts_aside
from miles_lite.stack.worker_start import FORK_SERVER
from tests.clusters import local_cluster
from tests.rollout.helpers import make_sample

pytestmark = pytest.mark.e2e
LONG, LAYERS, TOPK = 64 << 10, 48, 8
"""Of a sample that waits: 25 MB of routed experts."""
BATCH, MEMBERS = 2, 2
WAITING = range(BATCH * MEMBERS, 2 * BATCH * MEMBERS)
"""The numbers of the rollouts of the second step, which is rolled out and not trained."""
MOST_GROWTH = 20 << 20
END_SECONDS = 30.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(cpus=2, object_store_memory=400 << 20):
        yield


def sampled(index: int) -> list[Sample]:
    """What rollout number `index` gives, always the same."""
    if index not in WAITING:
        return [make_sample(10, 3)]
    sample = make_sample(LONG, 100)
    shape = (LONG - 1, LAYERS, TOPK)
    sample.routed_experts = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
    return [sample, make_sample(20, 3)]


@ray.remote(num_cpus=1, num_returns=2)
def agent(index: int, group: int) -> tuple[Rollout, list[Sample]]:
    samples = sampled(index)
    records = [sample.record() for sample in samples]
    return Rollout(index, group, records, reward=1.0, status=Status.COMPLETED, metadata={"number": index}), samples


@ray.remote(num_cpus=0, runtime_env={"env_vars": {FORK_SERVER: ""}})
class Manager:
    """Rolls out, saves and loads, as the rollout manager does. It is not forked from what has imported torch; what it
    has done aside is, where there is a `fork_server`."""

    def __init__(self, fork_server: str) -> None:
        os.environ[FORK_SERVER] = fork_server
        options = Rollouts(rollout_batch_size=BATCH, n_samples_per_prompt=MEMBERS)
        self.source = DataSource([Prompt(row=row, input="x") for row in range(10)], Data(prompt_data=""))
        self.generator = Generator(
            options,
            schedule_of(options, Scheduling(max_weight_staleness=1)),
            source=self.source,
            run_rollout=self.run,
            filter_function=None,
            accounts=Accounts(),
        )
        self.index = itertools.count()

    async def run(self, prompt: Prompt, group: int) -> Rollout:
        index = next(self.index)
        if index >= WAITING.stop:
            await asyncio.Event().wait()
        answer: Any = agent.remote(index, group)
        record, samples = answer
        rollout: Rollout = await record
        rollout.stored = Stored(samples)
        return rollout

    async def step(self, number: int) -> list[Group]:
        self.generator.updated(number)
        return (await self.generator.run(lambda: None)).groups

    async def save(self, folder: str) -> int:
        """By how much the process grew meanwhile."""
        await self.step(0)
        await self.step(1)
        before = resident()
        await resume.save(folder, 0, resume.snapshot(self.generator, self.source, next_index=WAITING.stop))
        return resident(most=True) - before

    async def load(self, folder: str) -> tuple[int, list[Group]]:
        """The same, and the next step, which was saved."""
        before = resident()
        self.index = itertools.count(await resume.load(folder, 0, self.generator, self.source))
        grown = resident(most=True) - before
        return grown, await self.step(1)

    async def has_torch(self) -> bool:
        return "torch" in sys.modules


def manager() -> Any:
    return Manager.remote(os.environ.get(FORK_SERVER, ""))  # type: ignore[attr-defined]


def resident(*, most: bool = False) -> int:
    """Bytes of memory that this process has; or had at `most` since it was asked for the others."""
    if not most:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:" if most else "VmRSS:"))


def test_arrays_that_wait_never_pass_through_the_manager(tmp_path: Path) -> None:
    first = manager()
    assert ray.get(first.save.remote(str(tmp_path)), timeout=120) < MOST_GROWTH
    assert not ray.get(first.has_torch.remote(), timeout=30)
    ray.kill(first)
    second = manager()
    grown, groups = ray.get(second.load.remote(str(tmp_path)), timeout=120)
    assert grown < MOST_GROWTH
    assert not ray.get(second.has_torch.remote(), timeout=30)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert sorted(rollout.metadata["number"] for rollout in rollouts) == list(WAITING)
    for rollout in rollouts:
        told, expected = rollout.fetch(), sampled(rollout.metadata["number"])
        assert [sample.record() for sample in told] == rollout.samples == [sample.record() for sample in expected]
        for one, other in zip(told, expected, strict=True):
            for name in ("tokens", "loss_mask", "logprobs", "temperatures", "weight_versions", "routed_experts"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


async def test_a_damaged_file_is_said_as_if_it_had_been_read_here(tmp_path: Path) -> None:
    await manager().save.remote(str(tmp_path))
    samples = tmp_path / "rollout" / "global_dataset_state_dict_0.pt"
    samples.write_bytes(samples.read_bytes()[:1000])
    with pytest.raises(UserError) as raised:
        await resume.load(str(tmp_path), 0, None, None)  # type: ignore[arg-type]
    assert type(raised.value) is UserError
    assert str(raised.value).startswith(f"--load {tmp_path}: {samples.name} is damaged: ")


def made() -> tuple[int, np.ndarray]:
    return os.getpid(), np.arange(1 << 20)


def full(path: Path) -> None:
    with writing("a file", path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def dies() -> tuple[None, bytes]:
    os._exit(1)


async def test_what_was_made_aside_outlives_the_process_that_made_it() -> None:
    pid, (array,) = await parts_aside(made, 1)
    assert pid != os.getpid()
    async with asyncio.timeout(END_SECONDS):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.05)
    assert np.array_equal(await array, np.arange(1 << 20))


async def test_what_goes_wrong_aside_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^the disk is full: a file could not be written: ") as raised:
        await aside(full, tmp_path / "x")
    assert type(raised.value) is UserError
    async with asyncio.timeout(END_SECONDS):
        with pytest.raises(UnavailableError, match="a process of its own could not do it: "):
            await parts_aside(dies, 1)
