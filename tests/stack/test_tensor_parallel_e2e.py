"""One engine of two tensor-parallel ranks, on one Ray node or divided over two, on CPU: ranks meet over gloo."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import requests

from miles_lite.config.choices import TransferMode
from miles_lite.engine.actor import EngineActor
from miles_lite.process.remote import Remote
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.stack.fleet import Fleet
from miles_lite.stack.placement import place
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Receiver
from miles_lite.weights.transports import TRANSPORTS
from tests.clusters import cluster_of_nodes
from tests.engine.conftest import remote
from tests.models import make_tiny_model, reference_logprobs
from tests.processes import command_of, running_after, tree_of
from tests.stack.chats import stack_options
from tests.waiting import until
from tests.weights.sender_process import FolderTrainer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPT = [5, 6, 7, 100, 200]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many Ray nodes as the parameter says, with two CPUs in all; their number."""
    with cluster_of_nodes(request.param, num_cpus=2 // request.param):
        yield request.param


@pytest.mark.parametrize("cluster", [1, 2], indirect=True)
async def test_it_serves_takes_weights_in_every_mode_and_is_replaced(cluster: int, tiny_model: Path, tmp_path: Path):
    """On one node its second rank hangs, on two the second node's server is killed."""
    options = stack_options(
        tiny_model, tmp_path, engine_health_interval=0.5, engine_health_timeout=3.0 if cluster == 1 else 60.0
    )
    topology = dataclasses.replace(options.topology, rollout_num_gpus_per_engine=2, num_gpus_per_node=2 // cluster)
    options = dataclasses.replace(options, topology=topology)
    layout = place(options.topology, train=False)
    fleet = Fleet(options, layout, model=tiny_model, context_length=2048)
    router = remote(RouterActor).remote(RouterSpec())
    await live(fleet, router, cluster, tiny_model, make_tiny_model(tmp_path / "other", seed=1))


async def live(fleet: Fleet, router: Any, nodes: int, model: Path, other: Path) -> None:
    url = await router.start.remote()
    try:
        await fleet.start([url])
        [engine], [slot] = fleet.engines, fleet._slots
        assert [worker["url"] for worker in await router.workers.remote()] == [engine.url]
        assert engine.ranks == 2
        assert len({await actor.handle.__ray_call__.remote(node) for actor in slot.nodes}) == nodes
        await check(url, model, "0")

        trainer = remote(FolderTrainer).remote()
        for version, (mode, folder) in enumerate(
            [(TransferMode.DISK, other), (TransferMode.TENSOR, model), (TransferMode.DISTRIBUTED, other)], 1
        ):
            asking = asyncio.create_task(generate(url, tokens=300))
            await asyncio.sleep(0.5)
            update = WeightUpdate(str(folder), version)
            if mode == TransferMode.DISK:
                assert (await fleet.update_weights(update)).behind == {}
            else:
                buckets = tuple(await trainer.load.remote(str(folder), 100_000))
                update = dataclasses.replace(update, buckets=buckets)
                assert (
                    await TRANSPORTS[mode]().deliver(update, Remote(trainer), [Receiver(0, slot.actor, engine)]) == {}
                )
            spans = (await asking)["meta_info"]["weight_versions"]
            assert [span["version"] for span in spans] == [str(version - 1), str(version)]
            await check(url, folder, str(version))
            assert await slot.actor.call(EngineActor.verify_weights) > 20  # both ranks' tensors

        processes = [process for actor in slot.nodes for process in await tree(actor.handle)]
        last = slot.nodes[-1].handle
        ranks = [process for process in await tree(last) if "scheduler" in command_of(process)]
        assert len(ranks) == 2 // nodes
        if nodes == 1:
            ranks[-1].suspend()
        else:
            os.killpg(await last.__ray_call__.remote(pid), signal.SIGKILL)
        await until(lambda: fleet.recoveries, "the replacement")
        assert ("hangs" if nodes == 1 else "its process has ended") in fleet.recoveries[0].reason
        assert not running_after(processes)
        [engine] = fleet.engines
        assert [worker["url"] for worker in await router.workers.remote()] == [engine.url]
        await check(url, other, "1")  # the fleet itself heard of version 1 only
        processes = [process for actor in slot.nodes for process in await tree(actor.handle)]
    finally:
        await fleet.stop()
        await router.stop.remote()
    assert not running_after(processes)


async def check(url: str, folder: Path, version: str) -> None:
    """Greedy tokens of the weights in `folder`, with transformers' logprobs."""
    answer = await generate(url, tokens=32, temperature=0)
    assert answer["meta_info"]["weight_version"] == version
    logprobs = [logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]]
    expected = reference_logprobs(folder, PROMPT + answer["output_ids"])[len(PROMPT) - 1 :]
    assert np.abs(np.array(logprobs) - expected).max() < 1e-4


async def generate(url: str, *, tokens: int, temperature: float = 1.0) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": temperature, "ignore_eos": True}
    body = {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
    reply = await asyncio.to_thread(requests.post, f"{url}/generate", json=body, timeout=120)
    reply.raise_for_status()
    answer: dict[str, Any] = reply.json()
    return answer


def node(_: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def pid(actor: Any) -> int:
    return int(actor._info.pid)


async def tree(actor: Any) -> list[psutil.Process]:
    """A server's process and all below it."""
    return tree_of(await actor.__ray_call__.remote(pid))
