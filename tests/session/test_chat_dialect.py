"""Chat completions through the official client, litellm, and over the wire."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from miles_lite.session.dialects import ChatCompletions
from miles_lite.session.dialects.json_reuse import Conversation
from miles_lite.session.errors import ApiError
from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench
from tests.session.replies import CHAT_TOOLS, saying

ASK: list[Any] = [{"role": "user", "content": "go"}]


@pytest.mark.parametrize("cut", [False, True])
async def test_a_stream_adds_up_to_the_plain_answer(tiny_model: Path, tito: Tito, cut: bool) -> None:
    async with bench(tiny_model, saying(tito, cut=cut)) as b:
        client = openai.AsyncOpenAI(base_url=b.client.base_url(await b.client.create()), api_key="-", max_retries=0)
        b.closing.push_async_callback(client.close)
        asked: dict[str, Any] = {"model": "m", "messages": ASK, "tools": CHAT_TOOLS, "logprobs": True}
        plain = await client.chat.completions.create(**asked)
        options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        state = ChatCompletionStreamState()
        async for chunk in await client.chat.completions.create(**asked, **options):
            state.handle_chunk(chunk)
        whole = state.current_completion_snapshot
        assert plain.choices[0].finish_reason == ("length" if cut else "tool_calls")
        got, want = (_comparable(done) for done in (whole, plain))
        assert got == want
        assert want["message"]["content"] == "hé, do 🎈\n\n bye"
        assert [call["function"]["arguments"] for call in want["message"]["tool_calls"]] == [
            '{"cmd": "ls"}',
            '{"cmd": "pwd"}',
        ]


async def test_text_leaves_while_the_engine_goes_on_and_calls_come_last(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        _, events = await b.stream(await b.client.create(), ASK, tools=CHAT_TOOLS)
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        *texts, last, finish = [next(iter(delta), "") for delta in deltas if delta != {"role": "assistant"}]
        assert texts.count("reasoning_content") > 1
        assert texts.count("content") > 1
        assert [call["index"] for call in deltas[-2]["tool_calls"]] == [0, 1]
        assert (last, finish) == ("content", "")


async def test_a_streams_bytes_grow_with_its_tokens_and_no_faster(tiny_model: Path, tito: Tito) -> None:
    async def size(words: int) -> int:
        async with bench(tiny_model, saying(tito, "word " * words)) as b:
            _, events = await b.stream(await b.client.create(), ASK)
            return len(json.dumps(events[:-1]))

    sizes = [await size(words) for words in (50, 100, 200)]
    steps = [after - before for before, after in pairwise(sizes)]
    assert steps[1] < 2.2 * steps[0]


async def test_choices_and_formats_become_grammars(tiny_model: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}}
    named = {"type": "function", "function": {"name": "run"}}
    cases: list[tuple[dict[str, Any], bool, list[str]]] = [
        ({"tools": CHAT_TOOLS}, False, []),
        ({"tools": CHAT_TOOLS, "tool_choice": "none"}, False, []),
        ({"tools": CHAT_TOOLS, "tool_choice": "required"}, True, ["tags_with_separator", "<tool_call>"]),
        ({"tools": CHAT_TOOLS, "tool_choice": named}, True, ["tags_with_separator", '"stop_after_first": true']),
        ({"tools": CHAT_TOOLS, "parallel_tool_calls": False}, True, ["triggered_tags", '"stop_after_first": true']),
        ({"response_format": {"type": "json_object"}}, True, ["json_schema"]),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}, True, ["enum"]),
        ({"response_format": {"type": "text"}}, False, []),
    ]

    async with bench(tiny_model, lambda body: answer([STOP])) as b:
        session = await b.client.create({"temperature": 1.0})
        for body, constrained, words in cases:
            assert (await b.chat(session, ASK, **body))[0] == 200
            params = b.engine.requests[-1]["sampling_params"]
            assert ("structural_tag" in params) == constrained
            assert all(word in params.get("structural_tag", "") for word in words)


async def test_silent_streams_are_kept_alive(tiny_model: Path) -> None:
    async def later(body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.5)
        return answer([STOP])

    async with bench(tiny_model, later, keep_alive=0.1) as b:
        session = await b.client.create()
        raw = await b.raw(session, "chat/completions", {"messages": ASK, "stream": True})
        assert raw.count(b": keep-alive\n\n") >= 2
        assert raw.startswith(b"data: {")
        raw = await b.raw(session, "messages", {"messages": ASK, "stream": True})
        assert raw.count(b"event: ping\n") >= 2
        assert raw.startswith(b"event: message_start\n")


async def test_litellm_and_its_tool_calls(tiny_model: Path, tito: Tito, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    pytest.importorskip("mcp", reason="litellm imports mcp when tools are given")

    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        where = {"model": "openai/m", "api_base": b.client.base_url(session), "api_key": "-", "tools": CHAT_TOOLS}
        got = await litellm.acompletion(messages=ASK, **where)
        message = got.choices[0].message
        assert [call.function.name for call in message.tool_calls] == ["run", "run"]
        assert message.reasoning_content == "why not"
        results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in message.tool_calls]
        chunks = await litellm.acompletion(messages=[*ASK, message.model_dump(), *results], stream=True, **where)
        whole = litellm.stream_chunk_builder([chunk async for chunk in chunks])
        assert whole.choices[0].message.content == "hé, do 🎈\n\n bye"
        assert [call.function.arguments for call in whole.choices[0].message.tool_calls] == [
            '{"cmd": "ls"}',
            '{"cmd": "pwd"}',
        ]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0]


def _comparable(completion: Any) -> dict[str, Any]:
    """Without what differs between two answers: the ids of tool calls, and what client helpers add."""
    choice = completion.choices[0].model_dump(exclude_none=True)
    for call in choice["message"]["tool_calls"]:
        call.pop("id")
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    choice["message"].pop("parsed", None)
    return {**choice, "usage": completion.usage.model_dump(exclude_none=True)}


@given(kept=st.integers(0, 6), changed=st.integers(0, 6), cut=st.integers(0, 6))
def test_what_the_session_holds_changes_nothing_in_what_is_read(kept: int, changed: int, cut: int) -> None:
    said = [
        {"role": "user", "content": f"{n}"} if n % 2 else {"role": "assistant", "content": f"{n}"} for n in range(6)
    ]
    held = [dict(message) for message in said[:kept]]
    if changed < kept:
        held[changed]["content"] = "other"
    sent = said[: max(cut, 1)]
    read = ChatCompletions().parse({"messages": Conversation(map(dict, sent), held)})
    assert read.messages == sent
    assert all(read.messages[n] is held[n] for n in range(min(len(held), len(sent))) if n != changed)


@pytest.mark.parametrize("bad", [{"role": "nobody"}, {"role": "user", "content": 3}, 5])
def test_a_bad_message_is_refused_wherever_it_stands(bad: Any) -> None:
    held = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    for place in range(3):
        sent = [*map(dict, held), {"role": "user", "content": "c"}]
        sent[place] = bad
        with pytest.raises(ApiError) as refused:
            ChatCompletions().parse({"messages": Conversation(sent, held)})
        assert str(refused.value.param).startswith(f"messages[{place}]")
