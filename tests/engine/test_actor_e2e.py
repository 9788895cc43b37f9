"""The engine actor with real SGLang on CPU: what it serves, and the weights it takes from folders."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
import requests
from safetensors.numpy import load_file, save_file

from miles_lite.config.choices import PauseMode
from miles_lite.config.engines import Engines
from miles_lite.engine.features import check, probe
from miles_lite.engine.liveness import Liveness
from miles_lite.engine.reported_load import Load
from miles_lite.errors import UserError
from miles_lite.process.probe import answers
from miles_lite.train.served_teacher import ServedTeacher
from miles_lite.weights.bucket import WeightUpdate
from tests.engine.conftest import Running, wait_computing
from tests.models import reference_logprobs
from tests.processes import runs
from tests.train.helpers import make_samples

pytestmark = pytest.mark.e2e
PROMPT = [5, 6, 7, 100, 200]


def update(running: Running, folder: Path, version: int, mode: PauseMode = PauseMode.RETRACT) -> float:
    seconds: float = ray.get(running.engine.update_weights.remote(WeightUpdate(str(folder), version, mode)), timeout=60)
    return seconds


def gap(folder: Path, answer: dict, *, temperature: float = 1.0, span: slice = slice(None)) -> float:
    """Largest difference between the engine's logprobs and transformers' with the weights in `folder`."""
    engines = np.array([logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]])
    expected = reference_logprobs(folder, PROMPT + answer["output_ids"], temperature=temperature)[len(PROMPT) - 1 :]
    return float(np.abs(engines - expected)[span].max())


def test_the_engine_registers_and_answers_through_the_router(running: Running):
    assert [one["url"] for one in ray.get(running.router.workers.remote())] == [running.info.url]
    answer = running.generate(PROMPT)
    assert len(answer["output_ids"]) == 16
    assert answer["meta_info"]["weight_versions"] == [{"version": "3", "start": 0, "end": 16}]
    assert ray.get(running.engine.alive.remote())
    assert runs(running.info.pid)


async def test_what_the_server_says_of_itself_is_understood(running: Running):
    features = await probe(url=running.info.url, headers={})
    assert features.paths is not None
    assert features.fields is not None
    assert {"/begin_weight_update", "/weights_checker"} <= features.paths
    assert {"input_ids", "return_routed_experts", "bootstrap_room"} <= features.fields
    assert features.ranks(otherwise=7) == 1
    lacking = dataclasses.replace(running.spec, engines=Engines(sglang_args={"enable_return_routed_experts": True}))
    with pytest.raises(UserError, match=r"routed experts .*is off in the server"):
        check(features, lacking)


async def test_what_the_server_bears_is_told(running: Running):
    asking = {"sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}}

    async def load_while(prompts: int) -> Load:
        load: Load | None
        body = {"input_ids": [[*PROMPT, row] for row in range(prompts)], **asking}
        request = asyncio.create_task(asyncio.to_thread(requests.post, f"{running.info.url}/generate", json=body))
        load = None
        while not request.done() and (load is None or load.running < prompts):
            load = await asyncio.to_thread(ray.get, running.engine.load.remote())
        await request
        assert load is not None
        return load

    busy = await load_while(3)
    assert busy.running == 3
    assert 0 <= busy.kv_use <= 1
    assert (busy.queued, busy.preempted, busy.version) == (0, 0, running.spec.weight_version)


def test_an_sse_stream_carries_each_token_once(running: Running):
    body = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}, "stream": True}
    with requests.post(f"{running.router_url}/generate", json=body, stream=True, timeout=60) as reply:
        events = [line for line in reply.iter_lines() if line.startswith(b"data: {")]
    assert sum(len(json.loads(event[6:])["output_ids"]) for event in events) == 8


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_transformers(running: Running, tiny_model: Path, temperature):
    update(running, tiny_model, 4)
    answer = running.generate(PROMPT, max_new_tokens=64, temperature=temperature)
    assert gap(tiny_model, answer, temperature=temperature) < 1e-4


def test_a_served_teacher_says_the_logprobs_of_transformers(running: Running, tiny_model: Path):
    update(running, tiny_model, 4)
    samples = make_samples(2, 3)
    for sample, said in zip(samples, ServedTeacher(running.info.url, likeliest=3).logprobs(samples), strict=True):
        ids = sample.tokens.tolist()
        expected = reference_logprobs(tiny_model, ids, temperature=1.0)
        assert np.abs(said.logprobs[1:] - expected).max() < 1e-4
        assert said.logprobs[0] == 0
        assert said.top_ids.shape == said.top_logprobs.shape == (len(ids), 3)
        for rank in range(3):
            instead = [*ids[:-1], int(said.top_ids[-1, rank])]
            assert reference_logprobs(tiny_model, instead)[-1] == pytest.approx(said.top_logprobs[-1, rank], abs=1e-4)
        assert (np.diff(said.top_logprobs[1:], axis=1) <= 0).all()


@pytest.mark.slow
async def test_a_long_prefill_is_not_a_hang(running: Running):
    """While prompts are computed no token comes out of anything, for longer than a probe waits."""
    url, short = running.info.url, 1.0
    prompts = [[5 + (row * token) % 400 for token in range(1900)] for row in range(1, 193)]

    async def probed() -> list[tuple[bool, str | None]]:
        liveness = Liveness(running.info.pid, url, timeout=short, patience=60.0)
        body = {"input_ids": prompts, "sampling_params": {"max_new_tokens": 1}}
        request = asyncio.create_task(asyncio.to_thread(requests.post, f"{url}/generate", json=body, timeout=120))
        found = []
        while not request.done():
            told = await answers(f"{url}/health_generate", seconds=short), await liveness.probe()
            found += [] if request.done() else [told]
        assert len((await request).json()) == len(prompts)
        return found

    found = await probed()
    assert (False, None) in found
    assert {verdict for _, verdict in found} == {None}


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_a_request_that_crosses_an_update_says_which_weights_sampled_what(
    running: Running, tiny_model: Path, other_model: Path, mode
):
    update(running, tiny_model, 10)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(running.generate, PROMPT, max_new_tokens=1200)
        wait_computing(running.engine)
        time.sleep(0.3)
        update(running, other_model, 11, mode)
        answer = asking.result(timeout=60)
    first, *rest = answer["meta_info"]["weight_versions"]
    assert first["version"] == "10"
    assert gap(tiny_model, answer, span=slice(0, first["end"])) < 1e-4
    if mode == "abort":
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    else:
        assert [span["version"] for span in rest] == ["11"]
        assert len(answer["output_ids"]) == 1200
    if mode == "retract":
        assert gap(other_model, answer, span=slice(first["end"], None)) < 1e-4


def test_after_an_update_the_new_weights_answer_also_for_a_prompt_seen_before(
    running: Running, tiny_model, other_model
):
    update(running, tiny_model, 20)
    running.generate(PROMPT)
    update(running, other_model, 21)
    answer = running.generate(PROMPT)
    assert answer["meta_info"]["weight_version"] == "21"
    assert gap(other_model, answer) < 1e-4


@pytest.mark.parametrize("damage", ["missing folder", "wrong shape", "unknown tensor"])
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_serve_on(
    running: Running, tiny_model: Path, tmp_path: Path, damage
):
    update(running, tiny_model, 30)
    weights = load_file(tiny_model / "model.safetensors")
    if damage != "missing folder":
        name = "model.norm.weight" if damage == "wrong shape" else "model.norm.other"
        save_file(weights | {name: np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    folder = tmp_path / "nowhere" if damage == "missing folder" else tmp_path
    with pytest.raises(Exception, match=r"no such folder|has shape"):
        update(running, folder, 31)
    answer = running.generate(PROMPT)
    assert answer["meta_info"]["weight_version"] == "30"
    assert gap(tiny_model, answer) < 1e-4


def test_the_servers_own_refusal_is_raised_in_its_words(running: Running, tiny_model: Path, tmp_path: Path):
    update(running, tiny_model, 40)
    save_file(load_file(tiny_model / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(Exception, match=r"the server answered 400: .*Failed to get weights iterator"):
        update(running, tmp_path, 41)
    assert running.generate(PROMPT)["meta_info"]["weight_version"] == "40"
