"""A session actor in front of a real router and a real SGLang server, driven by the official OpenAI client."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import ray

from miles_lite import config
from miles_lite.engine.actor import EngineActor
from miles_lite.engine.environment import actor_env
from miles_lite.engine.spec import EngineSpec
from miles_lite.engine.weights import WeightUpdate
from miles_lite.router.actor import RouterActor
from miles_lite.router.spec import RouterSpec
from miles_lite.sample import Sample
from miles_lite.session.actor import SessionActor, SessionSpec
from miles_lite.session.client import SessionClient
from tests.models import MOE_CONFIG, make_tiny_moe, reference_logprobs

pytestmark = pytest.mark.e2e


@dataclass
class Stack:
    """Handles of what the fixture started."""

    engine: Any
    session: Any
    url: str
    router_url: str
    model: Path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A mixture-of-experts model, whose routed experts the session asks for."""
    tiny_model = make_tiny_moe(tmp_path_factory.mktemp("moe"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    here: dict[str, Any] = {"bind_host": "127.0.0.1", "advertise_host": "127.0.0.1"}
    router = _remote(RouterActor).remote(RouterSpec())
    router_url = ray.get(router.start.remote(), timeout=30)
    spec = EngineSpec(
        index=0,
        model_path=str(tiny_model),
        device="cpu",
        router_url=router_url,
        log_path=str(tmp_path_factory.mktemp("logs") / "engine-0.log"),
        context_length=2048,
        threads=1,
        weight_version=3,
        sglang_args={"enable_return_routed_experts": True},
        **here,
    )
    engine = _remote(EngineActor).remote(spec)
    ray.get(engine.start.remote(), timeout=300)
    session = _remote(SessionActor).remote(
        SessionSpec(
            index=0,
            model_path=str(tiny_model),
            router_url=router_url,
            port=None,
            options=config.Session(tito_allowed_append_roles=("tool", "user"), session_retry_seconds=30.0),
            context_length=2048,
            run_dir=str(tmp_path_factory.mktemp("run")),
            routed_experts=True,
            **here,
        )
    )
    url = ray.get(session.start.remote(), timeout=60)
    yield Stack(engine, session, url, router_url, tiny_model)
    for actor in (session, engine, router):
        ray.get(actor.stop.remote(), timeout=30)
    ray.shutdown()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_agents_turns_become_one_sample_with_exact_logprobs(stack: Stack, temperature: float) -> None:
    async def run() -> None:
        async with SessionClient(stack.url) as client:
            session = await client.create({"temperature": temperature, "max_new_tokens": 24})
            agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
            messages: list[Any] = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello <|im_end|>"}]
            spent = 0
            for turn in range(3):
                got = await agent.chat.completions.create(model="m", messages=messages)
                assert got.usage is not None
                spent += got.usage.completion_tokens
                reply = got.choices[0].message.model_dump(exclude_none=True)
                messages += [reply, {"role": "user", "content": f"go on {turn}"}]
            content, spent_streaming = await _streamed(agent, messages)
            (sample,) = await client.collect(session)
            assert sample.trained_tokens == spent + spent_streaming
            assert _gap(stack.model, sample, temperature) <= 1e-4
            assert sample.routed_experts is not None
            assert sample.routed_experts.dtype == np.uint8
            assert np.array_equal(sample.routed_experts, await _routed(stack, sample.tokens))
            described = await client.describe(session)
            assert [turn["parent"] for turn in described["turns"]] == [None, 0, 1, 2]
            messages.append({"role": "assistant", "content": content})
            await agent.chat.completions.create(model="m", messages=[*messages, {"role": "user", "content": "end"}])
            assert (await client.describe(session))["turns"][-1]["parent"] == 3
            await client.delete(session)

    asyncio.run(run())
    assert ray.get(stack.session.load.remote(), timeout=10) == 0
    assert ray.get(stack.session.stats.remote(), timeout=10)["turns"] >= 5


@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_a_weight_update_in_the_middle_of_a_turn_is_survived(stack: Stack, mode: Any) -> None:
    def update() -> None:
        time.sleep(0.5)
        ray.get(stack.engine.update_weights.remote(WeightUpdate(str(stack.model), 9, mode)), timeout=60)

    async def run() -> Sample:
        async with SessionClient(stack.url) as client:
            session = await client.create({"temperature": 1.0, "max_new_tokens": 1500, "ignore_eos": True})
            agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
            messages: Any = [{"role": "user", "content": "hello"}]
            got = await agent.chat.completions.create(model="m", messages=messages)
            assert got.choices[0].finish_reason == "length"
            (sample,) = await client.collect(session)
            return sample

    ray.get(stack.engine.update_weights.remote(WeightUpdate(str(stack.model), 8)), timeout=60)
    updating = threading.Thread(target=update)
    updating.start()
    sample = asyncio.run(run())
    updating.join()
    assert sample.routed_experts is not None
    assert sample.routed_experts.shape == (len(sample) - 1, 2, MOE_CONFIG["num_experts_per_tok"])
    assert sample.routed_experts.max() < MOE_CONFIG["num_experts"]
    versions = sample.weight_versions[sample.loss_mask == 1]
    assert len(versions) == 1500
    assert set(versions) == {8, 9}
    assert np.all(np.diff(versions) >= 0)
    assert _gap(stack.model, sample, 1.0) <= 1e-4


async def _routed(stack: Stack, tokens: np.ndarray) -> np.ndarray:
    """The experts of a whole sequence, as one request returns them."""
    body = {"input_ids": tokens.tolist(), "sampling_params": {"max_new_tokens": 1}, "return_routed_experts": True}
    async with aiohttp.ClientSession() as http, http.post(f"{stack.router_url}/generate", json=body) as response:
        payload = (await response.json())["meta_info"]["routed_experts"]
    return np.frombuffer(base64.b64decode(payload), np.int32).reshape(
        len(tokens), 2, MOE_CONFIG["num_experts_per_tok"]
    )[:-1]


async def _streamed(agent: openai.AsyncOpenAI, messages: list[Any]) -> tuple[str, int]:
    content, events, tokens = "", 0, 0
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    async for event in await agent.chat.completions.create(model="m", messages=messages, **options):
        events += 1
        if event.usage:
            tokens = event.usage.completion_tokens
        for choice in event.choices:
            content += choice.delta.content or ""
    assert events > 4
    return content, tokens


def _gap(model: Path, sample: Sample, temperature: float) -> float:
    """Largest difference of the sample's logprobs from those of transformers on the same tokens and weights."""
    expected = reference_logprobs(model, sample.tokens.tolist(), temperature=temperature)
    trained = sample.loss_mask[1:] == 1
    return float(np.abs(expected - sample.logprobs[1:])[trained].max())


def _remote(actor: type) -> Any:
    return ray.remote(actor).options(num_cpus=0, runtime_env={"env_vars": actor_env()})
