"""Several answers to one request: turns beside one another, each trained, and each found again by a retry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench, failure
from tests.session.replies import CHAT_TOOLS, ids_of, saying

ASK: list[Any] = [{"role": "user", "content": "go"}]
RETRY = {"X-Stainless-Retry-Count": "1"}


def _client(b: Bench, session: str) -> openai.AsyncOpenAI:
    client = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", max_retries=0)
    b.closing.push_async_callback(client.close)
    return client


@pytest.mark.parametrize("policy", ["v2", "v1"])
async def test_each_choice_is_a_turn_of_its_own(tiny_model: Path, tito: Tito, policy: str) -> None:
    texts = ["one", "two two", "three"]

    said = iter([[*ids_of(tito, text), STOP] for text in texts])
    script = lambda body: answer(next(said, [5, STOP]))  # noqa: E731
    async with bench(tiny_model, script, use_session_server=policy) as b:
        session = await b.client.create()
        client = _client(b, session)
        got = await client.chat.completions.create(model="m", messages=ASK, n=3)
        assert [choice.index for choice in got.choices] == [0, 1, 2]
        assert sorted(choice.message.content or "" for choice in got.choices) == sorted(texts)
        assert got.usage is not None
        assert got.usage.completion_tokens == sum(len(ids_of(tito, text)) + 1 for text in texts)
        assert got.usage.prompt_tokens == len(b.engine.requests[0]["input_ids"])
        assert [turn["parent"] for turn in (await b.client.describe(session))["turns"]] == [None] * 3
        samples = await b.client.collect(session)
        assert len(samples) == 3
        assert sum(sample.trained_tokens for sample in samples) == got.usage.completion_tokens
        chosen: Any = got.choices[1].message.model_dump(exclude_none=True)
        await client.chat.completions.create(model="m", messages=[*ASK, chosen, *ASK])
        assert (await b.client.describe(session))["turns"][-1]["parent"] == 1


async def test_a_stream_of_several_choices_adds_up_to_the_plain_answer(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        asked: dict[str, Any] = {"model": "m", "messages": ASK, "tools": CHAT_TOOLS, "n": 2}
        plain = await _client(b, await b.client.create()).chat.completions.create(**asked)
        client = _client(b, await b.client.create())
        async with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
            async for _ in stream:
                pass
            whole = await stream.get_final_completion()
        assert len(whole.choices) == 2
        for got, want in zip(whole.choices, plain.choices, strict=True):
            assert (got.index, got.finish_reason, got.message.content) == (
                want.index,
                want.finish_reason,
                want.message.content,
            )
            calls = [call.function.arguments for call in want.message.tool_calls or ()]
            assert [call.function.arguments for call in got.message.tool_calls or ()] == calls
        assert whole.usage == plain.usage
        session = await b.client.create()
        _, events = await b.stream(session, ASK, n=2)
        assert events.count(b"[DONE]") == 1
        assert events[-1] == b"[DONE]"


async def test_a_retry_gets_the_choices_that_exist_and_the_rest_anew(tiny_model: Path) -> None:
    replies = iter([answer([5, STOP]), failure(400), answer([6, STOP])])

    async with bench(tiny_model, lambda body: next(replies)) as b:
        session = await b.client.create()
        client = _client(b, session)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=ASK, n=2)
        first = await client.chat.completions.create(model="m", messages=ASK, n=2, extra_headers=RETRY)
        again = await client.chat.completions.create(model="m", messages=ASK, n=2, extra_headers=RETRY)
        assert first.choices == again.choices
        assert len(b.engine.requests) == 3
        assert len(await b.client.collect(session)) == 2


@pytest.mark.parametrize("n", [0, -1, 129, True, "2"])
async def test_other_numbers_are_refused(tiny_model: Path, n: Any) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        status, got = await b.chat(await b.client.create(), ASK, n=n)
        assert (status, got["error"]["param"]) == (400, "n")
