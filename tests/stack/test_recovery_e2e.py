"""An engine is lost while sessions chat: they go on, and a replacement serves the current weights."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from miles_lite.process.post_mortem import DiedError
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import place
from miles_lite.stack.stack import Stack
from miles_lite.weights.bucket import WeightUpdate
from tests.clusters import local_cluster
from tests.models import make_tiny_model
from tests.processes import running_after, tree_of
from tests.stack.chats import Chats, replaced, scheduler_of, stack_options
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("how", ["its scheduler is stopped", "it is killed"])
async def test_sessions_go_on_and_the_replacement_serves_the_current_weights(
    tiny_model: Path, tmp_path: Path, how: str
):
    options = stack_options(tiny_model, tmp_path, engine_health_interval=0.5, engine_health_timeout=3.0)
    with local_cluster(cpus=2):
        stack = Stack(options, place(options.topology, train=False))
        await lose_an_engine(stack, how, make_tiny_model(tmp_path / "other", seed=1))


async def lose_an_engine(stack: Stack, how: str, other: Path) -> None:
    await stack.start()
    chats = Chats(stack.session_urls[0])
    try:
        delivered = await stack.fleet.call(Fleet.update_weights, WeightUpdate(str(other), 1))
        assert delivered.behind == {}
        chatting = asyncio.create_task(chats.run())
        await until(lambda: len(chats.replies) > 8, "the first replies")
        victim, survivor = (await stack.fleet.call(Fleet.status)).engines
        if how == "it is killed":
            os.killpg(victim.pid, signal.SIGKILL)
        else:
            scheduler_of(victim.pid).suspend()
            assert requests.get(f"{victim.url}/health", timeout=5).status_code == 200
        status = await replaced(stack.fleet, 1)
        [recovery] = status.recoveries
        assert ("hangs" if "stopped" in how else "has ended") in recovery.reason
        assert max(chats.first_after(recovery.noticed)) < recovery.serving - recovery.noticed
        replacement = next(one for one in status.engines if one.url != survivor.url)
        assert replacement.url != victim.url
        workers = (await asyncio.to_thread(requests.get, f"{stack.routers.urls[0]}/workers", timeout=5)).json()[
            "workers"
        ]
        assert {one["url"] for one in workers} == {survivor.url, replacement.url}
        assert await asyncio.to_thread(version_of, replacement.url) == "1"
        await asyncio.sleep(1.0)
        chats.stopped = True
        for samples in await asyncio.wait_for(chatting, 60):
            assert samples
            assert all(set(sample.weight_versions[sample.loss_mask == 1]) == {1} for sample in samples)
    finally:
        await stack.stop()


async def test_who_starts_a_fleet_learns_of_its_death_and_no_engine_outlives_it(tiny_model: Path, tmp_path: Path):
    options = stack_options(tiny_model, tmp_path)
    with local_cluster(cpus=2):
        await lose_the_fleet(Stack(options, place(options.topology, train=False)))


async def lose_the_fleet(stack: Stack) -> None:
    await stack.start()
    try:
        engines = (await stack.fleet.call(Fleet.status)).engines
        assert [engine.url for engine in engines] == stack.engine_urls
        servers = [process for engine in engines for process in tree_of(engine.pid)]
        assert stack.failure is None
        stack.fleet.kill()
        await until(lambda: stack.failure, "the loss")
        assert isinstance(stack.failure, DiedError)
        assert str(stack.failure) == "the engines' fleet has died"
        assert not running_after(servers)
    finally:
        await stack.stop()


def version_of(url: str) -> Any:
    body = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 2}}
    return requests.post(f"{url}/generate", json=body, timeout=60).json()["meta_info"]["weight_version"]
