"""Every dialect against a real SGLang engine, by the official clients: grammars, streams, conversations sent back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest

from miles_lite.session.client import SessionClient
from tests.session.conftest import Stack

pytestmark = pytest.mark.e2e

PARAMETERS = {
    "type": "object",
    "properties": {"cmd": {"enum": ["ls", "pwd"]}},
    "required": ["cmd"],
    "additionalProperties": False,
}
FUNCTION = {"name": "run", "parameters": PARAMETERS}
CHAT_TOOLS: Any = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS: Any = [{"type": "function", **FUNCTION, "strict": True}]
ANTHROPIC_TOOLS: Any = [{"name": "run", "input_schema": PARAMETERS}]
RUN = {"temperature": 5.0, "max_new_tokens": 120}
"""Hot, so that what a random model prefers does not matter."""
ATTEMPTS = 8
"""A random model thinks without end in half of its attempts."""


async def test_required_tools_and_schemas_are_enforced_by_the_engine(stack: Stack) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}

    async with SessionClient(stack.url) as client:
        session = await client.create(RUN)
        async with openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0) as agent:
            called, formed = 0, 0
            for _ in range(ATTEMPTS):
                ask: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "go"}]}
                got = await agent.chat.completions.create(
                    **ask, tools=CHAT_TOOLS, tool_choice="required", logprobs=True
                )
                choice = got.choices[0]
                assert choice.finish_reason in ("tool_calls", "length")
                if choice.finish_reason == "tool_calls":
                    calls: Any = choice.message.tool_calls
                    assert all(json.loads(call.function.arguments)["cmd"] in ("ls", "pwd") for call in calls)
                    logprobs = [token.logprob for token in choice.logprobs.content]
                    assert sum(abs(logprob) < 1e-3 for logprob in logprobs) >= 10
                    called += 1
                got = await agent.chat.completions.create(**ask, response_format=form)
                if got.choices[0].finish_reason == "stop":
                    assert json.loads(got.choices[0].message.content or "")["cmd"] in ("ls", "pwd")
                    formed += 1
            assert called > 0
            assert formed > 0


async def test_a_schema_that_is_none_is_refused_at_once(stack: Stack) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}

    async def run() -> None:
        async with SessionClient(stack.url) as client:
            session = await client.create(RUN)
            async with openai.AsyncOpenAI(base_url=client.base_url(session), api_key="-", max_retries=0) as agent:
                for stream in (False, True):
                    with pytest.raises(openai.BadRequestError):
                        await agent.chat.completions.create(
                            model="m",
                            messages=[{"role": "user", "content": "go"}],
                            response_format=form,
                            stream=stream,
                        )

    await asyncio.wait_for(run(), 20)


async def test_anthropic_and_responses_conversations_stay_one_sample(stack: Stack) -> None:
    async with SessionClient(stack.url) as client:
        first, second = await client.create(RUN), await client.create(RUN)
        async with anthropic.AsyncAnthropic(base_url=f"{client.url}/sessions/{first}", api_key="-") as agent:
            await _converse_anthropic(agent)
        async with openai.AsyncOpenAI(base_url=client.base_url(second), api_key="-") as other:
            await _converse_responses(other)
        for session in (first, second):
            assert [turn["parent"] for turn in (await client.describe(session))["turns"]] == [None, 0, 1, 2]
            assert len(await client.collect(session)) == 1


async def _converse_anthropic(agent: anthropic.AsyncAnthropic) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    for turn in range(4):
        asked: dict[str, Any] = {"model": "m", "max_tokens": 40, "messages": messages, "tools": ANTHROPIC_TOOLS}
        if turn % 2:
            async with agent.messages.stream(**asked) as stream:
                got = await stream.get_final_message()
        else:
            got = await agent.messages.create(**asked)
        assert 0 < got.usage.output_tokens <= 40
        messages.append({"role": "assistant", "content": [block.model_dump() for block in got.content]})
        messages.append({"role": "user", "content": f"go on {turn}"})


async def _converse_responses(agent: openai.AsyncOpenAI) -> None:
    items: list[Any] = [{"role": "user", "content": "hello"}]
    for turn in range(4):
        asked: dict[str, Any] = {"model": "m", "max_output_tokens": 40, "input": items, "tools": RESPONSES_TOOLS}
        if turn % 2:
            events = [event async for event in await agent.responses.create(**asked, stream=True)]
            assert len(events) > 10
            got: Any = events[-1]
            items += [item.model_dump() for item in got.response.output]
        else:
            items += [item.model_dump() for item in (await agent.responses.create(**asked)).output]
        items.append({"role": "user", "content": f"go on {turn}"})
