"""Two routers, of which one is lost while sessions chat: those behind the other do not notice."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from miles_lite.config.engines import RouterAddress
from miles_lite.config.places import Topology
from miles_lite.config.session_options import SessionServers
from miles_lite.session.actor import SessionActor
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import place
from miles_lite.stack.stack import Stack
from miles_lite.weights.bucket import WeightUpdate
from tests.clusters import local_cluster
from tests.models import make_tiny_model
from tests.stack.chats import Chats, stack_options
from tests.waiting import until

pytestmark = pytest.mark.e2e


async def test_a_lost_router_costs_the_sessions_behind_it_a_retry(tiny_model: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(
        stack_options(tiny_model, tmp_path),
        topology=Topology(device="cpu", rollout_num_gpus=1),
        router_address=RouterAddress(num_routers=2),
        session_servers=SessionServers(num_session_servers=2),
    ).check()
    with local_cluster(cpus=1):
        stack = Stack(options, place(options.topology, train=False))
        await lose_a_router(stack, make_tiny_model(tmp_path / "other", seed=1))


async def lose_a_router(stack: Stack, other: Path) -> None:
    await stack.start()
    behind, beside = (Chats(url, count=2) for url in stack.session_urls)
    try:
        chatting = [asyncio.create_task(chats.run()) for chats in (behind, beside)]
        await until(lambda: min(len(behind.replies), len(beside.replies)) > 2, "the first replies")
        [lost, _] = stack.routers._kept
        (await lost.serving()).kill()
        at = time.time()
        await until(lambda: lost.restarts and max(behind.first_after(at)) < 3600, "replies behind the lost one")
        await until(lambda: max(beside.first_after(at)) < 3600, "replies beside it")
        behind.stopped = beside.stopped = True
        for samples in [each for chats in await asyncio.gather(*chatting) for each in chats]:
            assert samples
        asked_again, untouched = [(await stats_of(session)).get("engine_retries", 0) for session in stack.sessions]
        assert asked_again >= 1
        assert untouched == 0
        assert any(line.startswith("router 0 has ended") for line in stack.alarms)
        assert not any("router 1" in line for line in stack.alarms)
        delivered = await stack.fleet.call(Fleet.update_weights, WeightUpdate(str(other), 1))
        assert delivered.behind == {}
        for url in stack.routers.urls:
            listed = (await asyncio.to_thread(requests.get, f"{url}/workers", timeout=5)).json()
            assert listed["weight_versions"] == ["1"]
            assert [worker["url"] for worker in listed["workers"]] == stack.engine_urls
    finally:
        await stack.stop()


async def stats_of(session: Any) -> dict[str, float]:
    return dict(await (await session.serving()).call(SessionActor.stats))
