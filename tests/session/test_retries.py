"""Clients that leave, and clients that ask again: an answer is generated once and reaches whoever asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench, failure
from tests.session.replies import CHAT_TOOLS, saying
from tests.waiting import until

ASK: list[Any] = [{"role": "user", "content": "go"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": ASK}),
    ("responses", {"input": ASK}),
    ("messages", {"messages": ASK, "max_tokens": 500}),
]
RETRY = {"X-Stainless-Retry-Count": "1"}


async def _post(
    b: Bench, session: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> bytes:
    url = f"{b.client.base_url(session)}/{path}"
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
        return await response.read()


async def _leave(b: Bench, session: str, path: str, body: dict[str, Any], *, asked: int) -> None:
    """Ask, and disconnect once the engine has been asked."""
    call = asyncio.create_task(_post(b, session, path, body))
    await until(lambda: len(b.engine.requests) >= asked, "the engine and the server to come so far")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0.05)


def _turns(b: Bench) -> float:
    return b.server.service.stats().get("turns", 0.0) if b.server.service else 0.0


def _took(b: Bench, turns: int) -> bool:
    return _turns(b) == turns


def _gated(script: Callable[[dict[str, Any]], Any], gate: asyncio.Event) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    async def wait(body: dict[str, Any]) -> Any:
        await gate.wait()
        return script(body)

    return wait


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("joins", [True, False])
async def test_a_retry_joins_or_replays_what_its_client_left(
    tiny_model: Path, tito: Tito, stream: bool, joins: bool
) -> None:
    gate = asyncio.Event()
    async with bench(tiny_model, _gated(saying(tito), gate)) as b:
        for asked, (path, body) in enumerate(BODIES, start=1):
            gate.clear()
            session = await b.client.create()
            body = body | {"stream": stream}
            await _leave(b, session, path, body, asked=asked)
            if joins:
                retry = asyncio.create_task(_post(b, session, path, body, RETRY))
                await asyncio.sleep(0.05)
                gate.set()
                got = await retry
            else:
                gate.set()
                await until(partial(_took, b, asked), "the engine and the server to come so far")
                got = await _post(b, session, path, body, RETRY)
            described = await b.client.describe(session)
            assert len(b.engine.requests) == asked
            assert len(described["turns"]) == 1
            assert described["counts"]["retries_joined"] == 1
            assert b"why not" in got or stream


@pytest.mark.parametrize("stream", [False, True])
async def test_an_idempotency_key_gives_the_same_bytes_for_ever(tiny_model: Path, tito: Tito, stream: bool) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        for path, body in BODIES:
            session = await b.client.create()
            key = {"Idempotency-Key": "k1"}
            first, *others = [await _post(b, session, path, body | {"stream": stream}, key) for _ in range(3)]
            assert others[0] == others[1]
            assert first[:80] == others[0][:80], "the answer's id"
            assert stream or first == others[0]
            assert await _post(b, session, path, body | {"stream": stream}, {"Idempotency-Key": "k2"}) != first
            assert len((await b.client.describe(session))["turns"]) == 2
        assert len(b.engine.requests) == 2 * len(BODIES)


async def test_a_late_listener_hears_the_stream_from_its_beginning(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b:
        for path, body in BODIES:
            session = await b.client.create()
            same = [_post(b, session, path, body | {"stream": True}, {"Idempotency-Key": "k"}) for _ in range(3)]
            first, *others = await asyncio.gather(*same)
            assert others == [first, first]
        assert len(b.engine.requests) == len(BODIES)


async def test_requests_that_do_not_say_that_they_repeat_are_new(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await b.client.create()
        path, body = BODIES[0]
        await _post(b, session, path, body)
        await _post(b, session, path, body)
        assert len(b.engine.requests) == 2
        await _post(b, session, path, body | {"max_tokens": 7}, RETRY)
        assert len(b.engine.requests) == 3


def _answers(*firsts: int) -> Callable[[dict[str, Any]], Any]:
    """One token each, in this order."""
    replies = iter(firsts)
    return lambda body: answer([next(replies), STOP])


async def _trained(b: Bench, session: str) -> list[int]:
    """The first sampled token of each sample."""
    return [int(sample.tokens[sample.loss_mask == 1][0]) for sample in await b.client.collect(session)]


OTHERWISE: list[dict[str, Any]] = [
    {},
    {"max_tokens": 7},
    {"stop": "END"},
    {"tools": CHAT_TOOLS},
    {"tools": CHAT_TOOLS, "tool_choice": "none"},
    {"tools": CHAT_TOOLS, "tool_choice": "required"},
    {"response_format": {"type": "json_object"}},
    {"temperature": 0.5},
]


@pytest.mark.parametrize("lost", [False, True])
async def test_requests_that_are_constrained_otherwise_are_independent(tiny_model: Path, lost: bool) -> None:
    """Also where the client got no answer to the first."""

    async with bench(tiny_model, _answers(*range(5, 50))) as b:
        session = await b.client.create()
        for asked, changes in enumerate(OTHERWISE, start=1):
            body = {"messages": ASK, **changes}
            if lost:
                await _lose(b, session, "chat/completions", body, turns=asked)
            else:
                await _post(b, session, "chat/completions", body)
        assert await _trained(b, session) == list(range(5, 5 + len(OTHERWISE)))


async def test_the_same_request_asked_one_after_the_other_gives_independent_answers(
    tiny_model: Path, tmp_path: Path
) -> None:
    """In memory, and when the session had to be read from its journal in between."""

    async def run(memory: float) -> None:
        journal = tmp_path / str(memory)
        async with bench(tiny_model, _answers(5, 6, 7, 8), run_dir=journal, session_memory_gb=memory) as b:
            session = await b.client.create()
            for _ in range(3):
                await _post(b, session, *BODIES[0])
                await b.client.create()
            assert await _trained(b, session) == [5, 6, 7]

    for memory in (8.0, 0.0):
        await run(memory)


async def _lose(b: Bench, session: str, path: str, body: dict[str, Any], *, turns: int) -> None:
    """Ask, and leave before the answer has been written."""
    gate = asyncio.Event()
    script, b.engine.script = b.engine.script, _gated(b.engine.script, gate)
    await _leave(b, session, path, body, asked=len(b.engine.requests) + 1)
    b.engine.script = script
    gate.set()
    await until(partial(_took, b, turns), "the engine and the server to come so far")


async def test_an_answer_that_got_lost_gives_way_to_the_one_that_is_asked_for_instead(tiny_model: Path) -> None:
    """Another spelling of the same question, as of a client that makes its request anew and says nothing of a retry."""

    async with bench(tiny_model, _answers(5, 6, 7)) as b:
        session = await b.client.create()
        await _lose(b, session, "chat/completions", {"messages": ASK}, turns=1)
        await _post(b, session, "chat/completions", {"messages": ASK, "user": "again"})
        await _post(b, session, "chat/completions", {"messages": ASK})
        assert await _trained(b, session) == [6, 7]


async def test_a_retry_within_the_grace_gets_the_answer_that_was_written_out(tiny_model: Path, tmp_path: Path) -> None:
    """That it was written does not mean that it arrived; in memory, or in the journal alone."""

    async def run(memory: float) -> None:
        journal = tmp_path / str(memory)
        async with bench(tiny_model, _answers(5, 6), run_dir=journal, session_memory_gb=memory) as b:
            session = await b.client.create()
            for asked, (path, body) in enumerate(BODIES[:2], start=1):
                first = await _post(b, session, path, body)
                await b.client.create()
                assert await _post(b, session, path, body, RETRY) == first
                assert len(b.engine.requests) == asked

    for memory in (8.0, 0.0):
        await run(memory)


async def test_a_retry_after_the_grace_is_answered_anew_and_takes_the_place_of_what_it_repeats(
    tiny_model: Path,
) -> None:
    async with bench(tiny_model, _answers(5, 6, 7), session_disconnect_grace=0.0) as b:
        session = await b.client.create()
        await _post(b, session, *BODIES[0])
        await _post(b, session, *BODIES[0])
        await _post(b, session, *BODIES[0], RETRY)
        assert await _trained(b, session) == [5, 7]


async def test_the_retry_of_a_request_that_failed_is_not_that_of_one_that_was_alike(tiny_model: Path) -> None:
    replies = iter([answer([5, STOP]), failure(400), answer([6, STOP])])

    async with bench(tiny_model, lambda body: next(replies)) as b:
        session = await b.client.create()
        await _post(b, session, *BODIES[0])
        await _post(b, session, *BODIES[0])
        await _post(b, session, *BODIES[0], RETRY)
        assert await _trained(b, session) == [5, 6]


async def test_parallel_requests_are_not_mixed_up_by_a_retry(tiny_model: Path) -> None:
    """Two agents ask the same; one leaves and asks again: it gets the answer that nobody listens to."""

    gate = asyncio.Event()
    replies = iter([[5, STOP], [6, STOP]])
    async with bench(tiny_model, _gated(lambda body: answer(next(replies)), gate)) as b:
        session = await b.client.create()
        path, body = BODIES[0]
        await _leave(b, session, path, body, asked=1)
        stays = asyncio.create_task(_post(b, session, path, body))
        await until(lambda: len(b.engine.requests) == 2, "the engine and the server to come so far")
        retry = asyncio.create_task(_post(b, session, path, body, RETRY))
        await asyncio.sleep(0.05)
        gate.set()
        assert await stays != await retry
        assert len(b.engine.requests) == 2
        assert len((await b.client.describe(session))["turns"]) == 2


async def test_a_generation_that_nobody_claims_is_aborted_after_the_grace_time(tiny_model: Path) -> None:
    gate = asyncio.Event()
    async with bench(tiny_model, _gated(lambda body: answer([5, STOP]), gate), session_disconnect_grace=0.2) as b:
        session = await b.client.create()
        path, body = BODIES[0]
        await _leave(b, session, path, body, asked=1)
        await until(lambda: b.engine.cancelled == 1, "the engine and the server to come so far")
        assert (await b.client.describe(session))["turns"] == []
        gate.set()
        await _post(b, session, path, body, RETRY)
        assert len(b.engine.requests) == 2


async def test_the_official_client_times_out_and_gets_its_answer_by_retrying(tiny_model: Path) -> None:
    async def slow(body: dict[str, Any]) -> Any:
        await asyncio.sleep(1.5)
        return answer([5, STOP])

    async with bench(tiny_model, slow) as b:
        session = await b.client.create()
        agent = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", timeout=1.0, max_retries=3)
        got = await agent.chat.completions.create(model="m", messages=ASK)
        assert got.usage is not None
        assert got.usage.completion_tokens == 2
        assert len(b.engine.requests) == 1
        await agent.close()
