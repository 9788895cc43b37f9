"""OpenAI Responses through the official client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from miles_lite.tito import Tito
from tests.session.engine import Bench, bench
from tests.session.replies import RESPONSES_TOOLS, saying


def _client(b: Bench, session: str) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0)
    b.closing.push_async_callback(client.close)
    return client


@pytest.mark.parametrize("cut", [False, True])
async def test_a_stream_adds_up_to_the_plain_answer(tiny_model: Path, tito: Tito, cut: bool) -> None:
    async with bench(tiny_model, saying(tito, cut=cut)) as b:
        client = _client(b, await b.client.create())
        asked: dict[str, Any] = {
            "model": "m",
            "input": "go",
            "tools": RESPONSES_TOOLS,
            "include": ["message.output_text.logprobs"],
        }
        plain = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == ("response.incomplete" if cut else "response.completed")
        assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
        assert kinds.count("response.output_text.delta") > 2
        assert kinds.count("response.function_call_arguments.done") == 2
        last: Any = events[-1]
        assert _assembled(events) == [_bare(item.model_dump()) for item in last.response.output]
        assert _comparable(last.response) == _comparable(plain)
        assert plain.output_text == "hé, do 🎈\n\n bye"
        assert [item.type for item in plain.output] == ["reasoning", "message", "function_call", "function_call"]
        assert plain.status == ("incomplete" if cut else "completed")


async def test_the_stream_helper_reads_it(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        client = _client(b, await b.client.create())
        tools: Any = [tool | {"strict": True} for tool in RESPONSES_TOOLS]
        async with client.responses.stream(model="m", input="go", tools=tools) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
        assert [item.arguments for item in final.output if item.type == "function_call"] == [
            '{"cmd": "ls"}',
            '{"cmd": "pwd"}',
        ]


@pytest.mark.parametrize("reasoning", [True, False])
async def test_a_conversation_sent_back_attaches_to_its_turn(tiny_model: Path, tito: Tito, reasoning: bool) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        client = _client(b, session)
        items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "go"}]}]
        for _ in range(3):
            got = await client.responses.create(model="m", instructions="be kind", input=items, tools=RESPONSES_TOOLS)
            items += [item.model_dump() for item in got.output if reasoning or item.type != "reasoning"]
            calls = [item for item in got.output if item.type == "function_call"]
            items += [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls]
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1]
        assert len(await b.client.collect(session)) == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
    ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "tool_choice": "required"}, "tool_choice"),
    ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"input": "x", "instructions": 3}, "instructions"),
]


async def test_wrong_requests_name_their_field(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        client = _client(b, await b.client.create())
        for body, path in BAD:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.post("/responses", body={"model": "m", **body}, cast_to=object)
            assert caught.value.param == path
        assert b.engine.requests == []
        schema = {"type": "object", "properties": {}}
        form: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
        await client.responses.create(model="m", input="go", text=form, max_output_tokens=7)
        params = b.engine.requests[-1]["sampling_params"]
        assert params["max_new_tokens"] == 7
        assert "json_schema" in params["structural_tag"]


def _assembled(events: list[Any]) -> list[dict[str, Any]]:
    """The items as their small events describe them."""
    items: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.type == "response.output_item.added":
            items[event.output_index] = event.item.model_dump() | {"texts": ""}
        elif event.type.endswith(".delta"):
            items[event.output_index]["texts"] += event.delta
        elif event.type == "response.output_item.done":
            whole = _bare(event.item.model_dump())
            texts = items[event.output_index]["texts"]
            assert texts == (whole.get("arguments") or (whole.get("content") or [{}])[0].get("text"))
            items[event.output_index] = whole
    return [items[index] for index in sorted(items)]


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if value is not None}


def _comparable(response: Any) -> dict[str, Any]:
    made: dict[str, Any] = response.model_dump(exclude_none=True)
    for name in ("id", "created_at"):
        made.pop(name)
    for item in made["output"]:
        item.pop("id")
        item.pop("call_id", None)
    return made
