"""`previous_response_id`: the session has the conversation, before and after its server was restarted."""

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


async def _turns(client: openai.AsyncOpenAI, count: int, previous: str | None, items: Any, **asked: Any) -> str | None:
    """Each turn sends what is new alone, every other one as a stream."""
    for turn in range(count):
        given: dict[str, Any] = {"model": "m", "input": items, "previous_response_id": previous, **asked}
        if turn % 2:
            events: Any = [event async for event in await client.responses.create(**given, stream=True)]
            got = events[-1].response
        else:
            got = await client.responses.create(**given)
        assert got.previous_response_id == previous
        previous = got.id
        calls = [item for item in got.output if item.type == "function_call"]
        items = [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls]
    return previous


async def test_a_conversation_goes_on_from_an_answer_also_after_a_restart(
    tiny_model: Path, tito: Tito, tmp_path: Path
) -> None:
    asked = {"instructions": "be kind", "tools": RESPONSES_TOOLS}
    async with bench(tiny_model, saying(tito), run_dir=tmp_path) as b:
        session = await b.client.create()
        last = await _turns(_client(b, session), 3, None, "go", **asked)
    async with bench(tiny_model, saying(tito), run_dir=tmp_path) as b:
        await _turns(_client(b, session), 2, last, "and then?", **asked)
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 1, 2, 3]
        assert len(await b.client.collect(session)) == 1


async def test_any_answer_may_be_gone_on_from(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        client = _client(b, session)
        first = await _turns(client, 1, None, "go")
        await _turns(client, 1, first, "left")
        await _turns(client, 1, first, "right")
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None, 0, 0]


async def test_instructions_are_those_of_the_request(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        session = await b.client.create()
        client = _client(b, session)
        system = [{"role": "system", "content": "from the input"}, {"role": "user", "content": "go"}]
        first = await _turns(client, 1, None, system, instructions="be kind")
        await _turns(client, 1, first, "on", instructions="be brief")
        await _turns(client, 1, first, "on")
        for words, prompt in zip(
            (["be kind", "from the input"], ["be brief", "from the input", "on"], ["from the input", "on"]),
            [tito.encoder.decode(request["input_ids"]) for request in b.engine.requests],
            strict=True,
        ):
            assert all(word in prompt for word in words)
            assert sum(word in prompt for word in ("be kind", "be brief")) == len(words) - 1 - ("on" in words)


async def test_an_answer_that_nobody_gave_is_refused(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        other = await _turns(_client(b, await b.client.create()), 1, None, "go")
        client = _client(b, await b.client.create())
        for previous in ("resp_1", other):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.responses.create(model="m", input="go", previous_response_id=previous)
            assert refused.value.param == "previous_response_id"
            assert refused.value.code == "previous_response_not_found"
