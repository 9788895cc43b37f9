"""Anthropic Messages through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import pytest

from miles_lite.session.dialects import Messages
from miles_lite.tito import Tito
from tests.session.engine import Bench, answer, bench, failure
from tests.session.replies import ANTHROPIC_TOOLS, ids_of, saying

ASK: list[Any] = [{"role": "user", "content": "go"}]


def _client(b: Bench, session: str) -> anthropic.AsyncAnthropic:
    client = anthropic.AsyncAnthropic(base_url=f"{b.client.url}/sessions/{session}", api_key="-", max_retries=0)
    b.closing.push_async_callback(client.close)
    return client


@pytest.mark.parametrize("cut", [False, True])
async def test_a_stream_adds_up_to_the_plain_answer(tiny_model: Path, tito: Tito, cut: bool) -> None:
    async with bench(tiny_model, saying(tito, cut=cut)) as b:
        client = _client(b, await b.client.create())
        asked: dict[str, Any] = {"model": "m", "max_tokens": 500, "messages": ASK, "tools": ANTHROPIC_TOOLS}
        plain = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            events = [event async for event in stream]
            whole = await stream.get_final_message()
        kinds = [event.type for event in events]
        begun: Any = events[0]
        assert (
            begun.message.usage.input_tokens == plain.usage.input_tokens + 1 == len(b.engine.requests[0]["input_ids"])
        )
        assert kinds.count("thinking") > 1
        assert kinds.count("text") > 2
        assert kinds.count("input_json") == 2
        got, want = (_comparable(message) for message in (whole, plain))
        assert got == want
        assert [block["type"] for block in want["content"]] == ["thinking", "text", "tool_use", "tool_use"]
        assert want["content"][2]["input"] == {"cmd": "ls"}
        assert want["stop_reason"] == ("max_tokens" if cut else "tool_use")
        assert want["usage"]["cache_read_input_tokens"] == 1


async def test_a_conversation_sent_back_attaches_to_its_turn(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        client = _client(b, session)
        messages = list(ASK)
        for turn in range(3):
            billing = f"x-anthropic-billing-header: cc_version=1; cch={turn}a;"
            system: Any = [{"type": "text", "text": billing}, {"type": "text", "text": "You are an agent."}]
            got = await client.messages.create(
                model="m", max_tokens=500, system=system, messages=messages, tools=ANTHROPIC_TOOLS
            )
            uses = [block for block in got.content if block.type == "tool_use"]
            results: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "ok"} for use in uses]
            text = {"type": "text", "text": "and then?"}
            messages += [
                {"role": "assistant", "content": [block.model_dump() for block in got.content]},
                {"role": "user", "content": [*results, text]},
            ]
        described = await b.client.describe(session)
        assert [turn["parent"] for turn in described["turns"]] == [None, 0, 1]
        assert len(await b.client.collect(session)) == 1
        prompt = tito.encoder.decode(b.engine.requests[-1]["input_ids"])
        assert "You are an agent." in prompt
        assert "billing" not in prompt


async def test_stop_sequences_and_tool_choice(tiny_model: Path, tito: Tito) -> None:
    ids = ids_of(tito, "answer END")

    async with bench(tiny_model, lambda body: answer(ids, finish={"type": "stop", "matched": "END"})) as b:
        client = _client(b, await b.client.create())
        asked: dict[str, Any] = {"model": "m", "max_tokens": 50, "messages": ASK}
        got = await client.messages.create(**asked, stop_sequences=["END"])
        assert (got.stop_reason, got.stop_sequence, got.content[0].text) == ("stop_sequence", "END", "answer ")
        params = b.engine.requests[-1]["sampling_params"]
        assert (params["stop"], params["max_new_tokens"]) == (["END"], 50)
        tools: dict[str, Any] = {"tools": [*ANTHROPIC_TOOLS, {"type": "web_search_20250305", "name": "web_search"}]}
        await client.messages.create(**asked, **tools, tool_choice={"type": "any"})
        assert "tags_with_separator" in b.engine.requests[-1]["sampling_params"]["structural_tag"]
        assert "web_search" not in tito.encoder.decode(b.engine.requests[-1]["input_ids"])
        counted = await client.messages.count_tokens(model="m", messages=ASK)
        assert counted.input_tokens == len(b.engine.requests[0]["input_ids"])
        assert [model.id async for model in client.models.list()] == [tiny_model.name]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 1}]}]}, "content[0].input"),
    ({"messages": ASK, "tools": [{}]}, "tools[0].name"),
    ({"messages": ASK, "max_tokens": "many"}, "max_tokens"),
    ({"messages": ASK, "stop_sequences": [1]}, "stop_sequences[0]"),
    ({"messages": ASK, "tool_choice": {"type": "any"}}, "tool_choice"),
    ({"messages": ASK, "system": 5}, "system"),
]


async def test_errors_have_anthropics_shape(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: failure(503), session_retry_seconds=0.2) as b:
        session = await b.client.create()
        client = _client(b, session)
        for body, path in BAD:
            with pytest.raises(anthropic.BadRequestError) as caught:
                await client.post("/v1/messages", body={"model": "m", **body}, cast_to=object)
            error: Any = caught.value.body
            assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
            assert path in error["error"]["message"]
        asked: dict[str, Any] = {"model": "m", "max_tokens": 5}
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            await client.messages.create(**asked, messages=[{"role": "user", "content": "word " * 3000}])
        gone = await b.client.create()
        await b.client.delete(gone)
        with pytest.raises(anthropic.NotFoundError):
            await _client(b, gone).messages.create(**asked, messages=ASK)
        with pytest.raises(anthropic.InternalServerError, match="api_error"):
            await client.messages.create(**asked, messages=ASK)
        assert (await b.client.describe(session))["turns"] == []


def _comparable(message: Any) -> dict[str, Any]:
    made: dict[str, Any] = message.model_dump(exclude_none=True)
    made.pop("id")
    for block in made["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    return made


def test_thinking_is_the_templates_switch() -> None:
    for thinking, options in (
        ({}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {}),
    ):
        assert Messages().parse({"messages": ASK, **thinking}).options == options


async def test_a_prefill_is_refused_by_name_and_still_counted(tiny_model: Path, tito: Tito) -> None:
    """Printed as a turn of its own, it would be trained as a conversation that nobody had."""

    async with bench(tiny_model, saying(tito)) as b:
        client = _client(b, await b.client.create())
        begun: Any = [*ASK, {"role": "assistant", "content": "{"}]
        with pytest.raises(anthropic.BadRequestError, match="prefill"):
            await client.messages.create(model="m", max_tokens=50, messages=begun)
        assert (await client.messages.count_tokens(model="m", messages=begun)).input_tokens > 0
        assert b.engine.requests == []
