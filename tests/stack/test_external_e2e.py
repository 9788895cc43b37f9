"""A server that was started by hand, with a key on its weight endpoints, serves a stack that starts none itself."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from miles_lite.config.places import Hosts
from miles_lite.engine.cpu_shim import needs_profile
from miles_lite.engine.launch import Placement, command, environment
from miles_lite.engine.server_process import FORK_SERVER, ServerProcess
from miles_lite.engine.spec import EngineSpec
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import place
from miles_lite.stack.stack import Stack
from miles_lite.weights.bucket import WeightUpdate
from tests.clusters import local_cluster
from tests.models import make_tiny_model
from tests.ports import free_port
from tests.stack.chats import Chats, stack_options
from tests.waiting import until

pytestmark = pytest.mark.e2e
KEY = "the-admin-key"


@pytest.fixture(scope="module")
def by_hand(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("by-hand")
    spec = EngineSpec(
        index=0,
        model_path=str(tiny_model),
        device="cpu",
        log_path=str(folder / "log"),
        context_length=2048,
        threads=1,
        admin_key=KEY,
    )
    port = free_port()
    env = environment(spec, os.environ, profile=needs_profile("cpu")) | {FORK_SERVER: ""}  # as a user starts it
    argv = command(spec, Placement(port=port), known=frozenset())
    server = ServerProcess.launch(argv, env=env, log_path=folder / "log", secrets=[KEY])
    asyncio.run(server.wait_healthy(f"http://127.0.0.1:{port}", 300))
    log = (folder / "log").read_text()
    assert "'admin_api_key': '***'" in log, "SGLang prints its settings"
    assert KEY not in log
    yield f"127.0.0.1:{port}"
    asyncio.run(server.stop())


def test_its_weight_endpoints_need_the_key(by_hand: str):
    body = {"model_path": "/nowhere"}
    for path in ("/update_weights_from_disk", "/begin_weight_update", "/pause_generation", "/weights_checker"):
        assert requests.post(f"http://{by_hand}{path}", json=body, timeout=10).status_code == 401


async def test_it_serves_sessions_takes_weights_and_outlives_the_stack(by_hand: str, tiny_model: Path, tmp_path: Path):
    with local_cluster(cpus=1):
        options = stack_options(tiny_model, tmp_path, sglang_args={"admin_api_key": KEY})
        hosts = Hosts(bind_host="0.0.0.0", advertise_host="127.0.0.1")
        topology = dataclasses.replace(options.topology, rollout_external_engine_addrs=(by_hand,))
        options = dataclasses.replace(options, topology=topology, hosts=hosts)
        other = make_tiny_model(tmp_path / "other", seed=1)
        await chat_across_an_update(Stack(options, place(topology, train=False)), other)
    assert requests.get(f"http://{by_hand}/health", timeout=5).status_code == 200


async def chat_across_an_update(stack: Stack, other: Path) -> None:
    await stack.start()
    try:
        assert stack.admin_key == KEY
        for url in (f"{stack.routers.urls[0]}/remove_worker", f"{stack.session_urls[0]}/sessions"):
            assert requests.post(url, timeout=10).status_code == 401, "off loopback all of it needs the key"
        chats = Chats(stack.session_urls[0], count=2, admin_key=KEY)
        chatting = asyncio.create_task(chats.run())
        await until(lambda: len(chats.replies) > 4, "replies before the update")
        assert (await stack.fleet.call(Fleet.update_weights, WeightUpdate(str(other), 1))).behind == {}
        before = len(chats.replies)
        await until(lambda: len(chats.replies) > before + 4, "replies after it")
        chats.stopped = True
        samples = [sample for session in await chatting for sample in session]
        assert {0, 1} <= {int(version) for sample in samples for version in sample.weight_versions}
    finally:
        await stack.stop()
