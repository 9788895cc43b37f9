"""Chat completions with `functions` and `function_call`, the older form of tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from miles_lite.tito import Tito
from tests.session.engine import Bench, bench
from tests.session.replies import FUNCTION, saying

ONE = '<think>\nwhy\n</think>\n\nhm <tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>'
ASK: list[Any] = [{"role": "user", "content": "go"}]


async def _client(b: Bench, session: str) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0)
    b.closing.push_async_callback(client.close)
    return client


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_in_the_older_form_is_one_sample(tiny_model: Path, tito: Tito, streamed: bool) -> None:
    async with bench(tiny_model, saying(tito, ONE), session_message_matcher="strict") as b:
        session = await b.client.create()
        client = await _client(b, session)
        messages: list[Any] = list(ASK)
        for turn in range(3):
            asked: dict[str, Any] = {"model": "m", "messages": messages, "functions": [FUNCTION]}
            message, reason = await (_streamed if streamed else _plain)(client, asked)
            assert message["function_call"] == {"name": "run", "arguments": '{"cmd": "ls"}'}
            assert "tool_calls" not in message
            assert reason == "function_call"
            messages += [message, {"role": "function", "name": "run", "content": f"result {turn}"}]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1]
        assert len(await b.client.collect(session)) == 1
        prompt = tito.encoder.decode(b.engine.requests[-1]["input_ids"])
        assert "<tool_response>\nresult 1\n</tool_response>" in prompt
        assert '"name": "run"' in prompt.partition("<|im_end|>")[0]


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_that_the_older_form_cannot_say_are_in_tool_calls(
    tiny_model: Path, tito: Tito, streamed: bool
) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        client = await _client(b, session)
        asked: dict[str, Any] = {"model": "m", "messages": ASK, "functions": [FUNCTION]}
        message, _ = await (_streamed if streamed else _plain)(client, asked)
        assert message["function_call"]["arguments"] == '{"cmd": "ls"}'
        assert [call["function"]["arguments"] for call in message["tool_calls"]] == [
            '{"cmd": "ls"}',
            '{"cmd": "pwd"}',
        ]
        asked["messages"] = [*ASK, message, {"role": "function", "name": "run", "content": "ok"}]
        await client.chat.completions.create(**asked)
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0]


async def test_a_choice_in_the_older_form(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito, ONE)) as b:
        session = await b.client.create()
        status, _ = await b.chat(session, ASK, functions=[FUNCTION], function_call={"name": "run"})
        assert status == 200
        assert "tags_with_separator" in b.engine.requests[-1]["sampling_params"]["structural_tag"]
        status, answer = await b.chat(session, ASK, functions=[FUNCTION], function_call="none")
        assert "function_call" not in answer["choices"][0]["message"]
        for bad, path in (
            ({"functions": [FUNCTION], "tools": [{"type": "function", "function": FUNCTION}]}, "functions"),
            ({"functions": [FUNCTION], "function_call": "required"}, "function_call"),
            ({"functions": [FUNCTION], "function_call": {"name": "nobody"}}, "tool_choice"),
            ({"functions": [{}]}, "tools[0].function.name"),
        ):
            status, answer = await b.chat(session, ASK, **bad)
            assert (status, answer["error"]["param"]) == (400, path)


async def _plain(client: openai.AsyncOpenAI, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    choice = (await client.chat.completions.create(**asked)).choices[0]
    return choice.message.model_dump(exclude_none=True), choice.finish_reason


async def _streamed(client: openai.AsyncOpenAI, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    message: dict[str, Any] = {"content": "", "tool_calls": {}}
    async for chunk in await client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        delta: Any = choice.delta.model_dump(exclude_none=True)
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                message[name] = message.get(name, "") + delta[name]
        message |= {name: delta[name] for name in ("role", "function_call") if name in delta}
        for call in delta.get("tool_calls", ()):
            message["tool_calls"][call.pop("index")] = call
    calls = message.pop("tool_calls")
    return message | ({"tool_calls": list(calls.values())} if calls else {}), str(choice.finish_reason)
