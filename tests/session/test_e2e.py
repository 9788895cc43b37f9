"""A session actor in front of a real router and a real SGLang server, driven by the official OpenAI client."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
import ray

from miles_lite.config.session_options import Session as SessionOptions
from miles_lite.sample import Sample
from miles_lite.session.actor import SessionSpec
from miles_lite.session.client import SessionClient
from miles_lite.session.server import SessionServer
from miles_lite.weights.bucket import WeightUpdate
from tests.engine.conftest import wait_computing
from tests.models import MOE_CONFIG, reference_logprobs
from tests.session.conftest import Stack

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_an_agents_turns_become_one_sample_with_exact_logprobs(stack: Stack, temperature: float) -> None:
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

    before = ray.get(stack.session.stats.remote(), timeout=10)
    await run()
    after = ray.get(stack.session.stats.remote(), timeout=10)
    assert after["turns"] >= before.get("turns", 0) + 5
    assert after["sessions"] == before["sessions"]


@pytest.mark.parametrize("mode", ["abort", "retract"])
async def test_a_weight_update_in_the_middle_of_a_turn_is_survived(stack: Stack, mode: Any) -> None:
    def update() -> None:
        wait_computing(stack.engine)
        time.sleep(0.3)
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
    sample = await run()
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


@asynccontextmanager
async def _serving(stack: Stack, **options: Any) -> AsyncIterator[SessionClient]:
    """A session server of its own in front of the same engine."""
    spec = SessionSpec(
        index=1,
        model_path=str(stack.model),
        router_url=stack.router_url,
        options=SessionOptions(session_retry_seconds=30.0, **options),
        context_length=2048,
    )
    server = SessionServer(spec)
    try:
        async with SessionClient(await server.start()) as client:
            yield client
    finally:
        await server.stop()


async def _talk(client: SessionClient, questions: list[str]) -> tuple[str, list[Any], int]:
    """(session, its conversation, tokens sampled) of one turn per question."""
    session = await client.create({"temperature": 1.0, "max_new_tokens": 16})
    agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
    messages: list[Any] = [{"role": "system", "content": "s"}]
    spent = 0
    for question in questions:
        messages.append({"role": "user", "content": question})
        got = await agent.chat.completions.create(model="m", messages=messages)
        assert got.usage is not None
        spent += got.usage.completion_tokens
        messages.append(got.choices[0].message.model_dump(exclude_none=True))
    return session, messages, spent


@pytest.mark.parametrize("level", ["token", "text"])
async def test_timelines_of_a_real_model_merge_and_every_logprob_is_of_the_context_that_the_sample_says(
    stack: Stack, level: Any
) -> None:
    """No role but tool is declared, so each turn is a root of its own; random replies seldom re-encode as sampled."""

    async with _serving(stack, timeline_compare_level=level) as client:
        session, _, spent = await _talk(client, ["a", "b", "c"])
        assert (await client.describe(session))["counts"]["roots_role"] == 2
        samples = await client.collect(session)
        assert sum(sample.trained_tokens for sample in samples) == spent
        assert len(samples) == 1 or level == "token"
        for sample in samples:
            expected = reference_logprobs(stack.model, sample.tokens.tolist(), temperature=1.0)
            exact = (sample.loss_mask == 1) & ~sample.off_context
            assert np.abs(expected - sample.logprobs[1:])[exact[1:]].max() <= 1e-4


def longest(samples: list[Sample], metadata: dict[str, Any]) -> list[Sample]:
    return sorted(samples, key=len)[-1:]


async def test_a_line_and_a_picker_in_front_of_a_real_engine(stack: Stack) -> None:
    roles = ("tool", "user")
    async with _serving(stack, use_session_server="v1", tito_allowed_append_roles=roles) as client:
        session, messages, spent = await _talk(client, ["a", "b", "c"])
        agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="rollback failed: discard_count=3"):
            await agent.chat.completions.create(model="m", messages=messages[:2])
        got = await agent.chat.completions.create(model="m", messages=messages[:-1])
        assert got.usage is not None
        (sample,) = await client.collect(session)
        described = await client.describe(session)
        assert sample.trained_tokens == spent - described["turns"][2]["completion_tokens"] + got.usage.completion_tokens
        assert _gap(stack.model, sample, 1.0) <= 1e-4
    picker = f"{__name__}.longest"
    async with _serving(stack, session_sample_picker_path=picker, tito_allowed_append_roles=roles) as client:
        session, messages, _ = await _talk(client, ["a", "b"])
        agent = openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0)
        await agent.chat.completions.create(model="m", messages=messages[:2])
        assert [sample.metadata["leaf"] for sample in await client.collect(session)] == [1]


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
