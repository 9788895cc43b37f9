"""Weights that travel without a folder: a trainer's process, real SGLang servers, requests under way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from miles_lite.config.choices import PauseMode, TransferMode
from miles_lite.engine.actor import EngineActor
from miles_lite.process.remote import Remote
from miles_lite.weights.bucket import WeightUpdate
from miles_lite.weights.delivery import Receiver, Transport
from miles_lite.weights.transports import TRANSPORTS
from tests.engine.conftest import Running, remote, wait_computing
from tests.models import reference_logprobs
from tests.weights.sender_process import FolderTrainer

pytestmark = pytest.mark.e2e
PROMPT = [5, 6, 7, 100, 200]
BUCKET = 100_000
"""Bytes: the tiny model takes six buckets."""


@pytest.fixture(scope="module")
def trainer(cluster: None) -> Iterator[Any]:
    actor = remote(FolderTrainer).remote()
    yield actor
    ray.kill(actor)


def receivers(*engines: tuple[Any, Any]) -> list[Receiver[EngineActor]]:
    return [Receiver(at, Remote(actor), info) for at, (actor, info) in enumerate(engines)]


async def send(
    sync: Transport, trainer: Any, to: list[Receiver[EngineActor]], folder: Path, version: int, mode=PauseMode.RETRACT
):
    buckets = ray.get(trainer.load.remote(str(folder), BUCKET))
    assert len(buckets) > 3
    update = WeightUpdate(str(folder), version, mode, tuple(buckets))
    return await sync.deliver(update, Remote(trainer), to)


def gap(folder: Path, answer: dict, span: slice = slice(None)) -> float:
    """Largest difference between the engine's logprobs and transformers' with the weights in `folder`."""
    engines = np.array([logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]])
    expected = reference_logprobs(folder, PROMPT + answer["output_ids"])[len(PROMPT) - 1 :]
    return float(np.abs(engines - expected)[span].max())


@pytest.mark.parametrize("transfer", [TransferMode.TENSOR, TransferMode.DISTRIBUTED])
@pytest.mark.parametrize("mode", list(PauseMode))
async def test_a_request_under_way_says_which_weights_sampled_what_and_the_new_ones_are_exact(
    running: Running, trainer: Any, tiny_model: Path, other_model: Path, transfer, mode
):
    sync, to = TRANSPORTS[transfer](), receivers((running.engine, running.info))
    assert await send(sync, trainer, to, tiny_model, 10) == {}
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(running.generate, PROMPT, max_new_tokens=1200)
        wait_computing(running.engine)
        time.sleep(0.3)
        assert await send(sync, trainer, to, other_model, 11, mode) == {}
        answer = asking.result(timeout=60)
    first, *rest = answer["meta_info"]["weight_versions"]
    assert first["version"] == "10"
    assert gap(tiny_model, answer, slice(0, first["end"])) < 1e-4
    assert [span["version"] for span in rest] == ([] if mode == PauseMode.ABORT else ["11"])
    after = running.generate(PROMPT, max_new_tokens=32)
    assert after["meta_info"]["weight_version"] == "11"
    if mode != PauseMode.IN_PLACE:  # there the prompt's cache is of the old weights
        assert gap(other_model, after) < 1e-4
    assert ray.get(running.engine.verify_weights.remote()) > 10


async def test_a_checksum_tells_other_weights(running: Running, trainer: Any, tiny_model: Path, other_model: Path):
    buckets = ray.get(trainer.load.remote(str(tiny_model), BUCKET))
    lying = WeightUpdate(str(other_model), 20, PauseMode.RETRACT, tuple(buckets))
    sync = TRANSPORTS[TransferMode.TENSOR]()
    assert await sync.deliver(lying, Remote(trainer), receivers((running.engine, running.info))) == {}
    with pytest.raises(Exception, match=r"of \d+ tensors differ from .*embed_tokens"):
        ray.get(running.engine.verify_weights.remote())


@pytest.mark.parametrize("transfer", [TransferMode.TENSOR, TransferMode.DISTRIBUTED])
@pytest.mark.parametrize("damage", ["shape", "midway"])
async def test_after_a_failed_update_the_old_weights_serve_on(
    running: Running, trainer: Any, tiny_model: Path, other_model: Path, transfer, damage
):
    sync, to = TRANSPORTS[transfer](), receivers((running.engine, running.info))
    assert await send(sync, trainer, to, tiny_model, 30) == {}
    buckets = ray.get(trainer.load.remote(str(other_model), BUCKET))
    if damage == "shape":
        buckets[1] = dataclasses.replace(buckets[1], shapes=((3, 3),))
    else:  # the trainer has fewer buckets than it announced: its call fails when some were loaded
        buckets = [*buckets, dataclasses.replace(buckets[0])]
    failures = await sync.deliver(
        WeightUpdate(str(other_model), 31, PauseMode.RETRACT, tuple(buckets)), Remote(trainer), to
    )
    assert list(failures) == [0]
    assert ("has shape" if damage == "shape" else "list index") in failures[0]
    answer = running.generate(PROMPT)
    assert answer["meta_info"]["weight_version"] == "30"
    assert gap(tiny_model, answer) < 1e-4
    assert await send(sync, trainer, to, other_model, 32) == {}
    assert gap(other_model, running.generate(PROMPT)) < 1e-4


async def test_an_engine_on_another_machine_is_left_alone_by_memory_that_it_cannot_open(
    running: Running, trainer: Any, tiny_model: Path, other_model: Path
):
    tensor, near = TRANSPORTS[TransferMode.TENSOR], receivers((running.engine, running.info))
    assert await send(tensor(), trainer, near, tiny_model, 33) == {}
    far = receivers((running.engine, dataclasses.replace(running.info, memory=None)))
    failures = await send(tensor(), trainer, far, other_model, 34)
    assert failures == {0: "it does not share the trainer's memory"}
    assert running.generate(PROMPT)["meta_info"]["weight_version"] == "33"


def test_an_offloaded_engine_lets_requests_wait_and_serves_the_same_afterwards(running: Running, tiny_model: Path):
    ray.get(running.engine.update_weights.remote(WeightUpdate(str(tiny_model), 35)))
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(running.generate, PROMPT, max_new_tokens=600)
        wait_computing(running.engine)
        ray.get(running.engine.offload.remote(), timeout=60)
        ray.get(running.engine.offload.remote(), timeout=60)
        time.sleep(0.5)
        assert not asking.done()
        ray.get(running.engine.onload.remote(), timeout=60)
        answer = asking.result(timeout=60)
    assert len(answer["output_ids"]) == 600
    assert gap(tiny_model, answer) < 1e-4


@pytest.mark.slow
async def test_one_of_two_engines_that_fails_leaves_no_one_waiting(
    running: Running, trainer: Any, tiny_model: Path, other_model: Path, tmp_path: Path
):
    spec = dataclasses.replace(running.spec, index=1, router_urls=(), log_path=str(tmp_path / "log"))
    second = remote(EngineActor).remote(spec)
    try:
        info = ray.get(second.start.remote(), timeout=300)
        both = receivers((running.engine, running.info), (second, info))
        sync = TRANSPORTS[TransferMode.DISTRIBUTED]()
        assert await send(sync, trainer, both, tiny_model, 40) == {}
        ray.get(second.leave_group.remote())  # it refuses the next broadcast at once; the trainer would wait for it
        failures = await send(sync, trainer, both, other_model, 41)
        assert sorted(failures) == [0, 1]
        for url in (running.info.url, info.url):
            answer = running.generate(PROMPT, url=url)
            assert answer["meta_info"]["weight_version"] == "40"
            assert gap(tiny_model, answer) < 1e-4
        assert await send(sync, trainer, both, other_model, 42) == {}
        assert await send(TRANSPORTS[TransferMode.TENSOR](), trainer, both, tiny_model, 43) == {}
        for url in (running.info.url, info.url):
            assert gap(tiny_model, running.generate(PROMPT, url=url)) < 1e-4
    finally:
        ray.get(second.stop.remote(), timeout=30)
