"""Clients that leave, and clients that ask again: an answer is generated once and reaches whoever asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from miles_lite.tito import Tito
from tests.session.engine import STOP, Bench, answer, bench
from tests.session.replies import saying

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
    await _until(lambda: len(b.engine.requests) >= asked)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await asyncio.sleep(0.05)


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(300):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true within 6 s")


def _turns(b: Bench) -> float:
    return b.server.service.stats().get("turns", 0.0) if b.server.service else 0.0


def _gated(script: Callable[[dict[str, Any]], Any], gate: asyncio.Event) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    async def wait(body: dict[str, Any]) -> Any:
        await gate.wait()
        return script(body)

    return wait


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("joins", [True, False])
def test_a_retry_joins_or_replays_what_its_client_left(tiny_model: Path, tito: Tito, stream: bool, joins: bool) -> None:
    async def run() -> None:
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
                    await _until(lambda asked=asked: _turns(b) == asked)
                    got = await _post(b, session, path, body, RETRY)
                described = await b.client.describe(session)
                assert len(b.engine.requests) == asked
                assert len(described["turns"]) == 1
                assert described["counts"]["retries_joined"] == 1
                assert b"why not" in got or stream

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_an_idempotency_key_gives_the_same_bytes_for_ever(tiny_model: Path, tito: Tito, stream: bool) -> None:
    async def run() -> None:
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

    asyncio.run(run())


def test_a_late_listener_hears_the_stream_from_its_beginning(tiny_model: Path, tito: Tito) -> None:
    async def run() -> None:
        async with bench(tiny_model, saying(tito)) as b:
            for path, body in BODIES:
                session = await b.client.create()
                same = [_post(b, session, path, body | {"stream": True}, {"Idempotency-Key": "k"}) for _ in range(3)]
                first, *others = await asyncio.gather(*same)
                assert others == [first, first]
            assert len(b.engine.requests) == len(BODIES)

    asyncio.run(run())


def test_requests_that_do_not_say_that_they_repeat_are_new(tiny_model: Path) -> None:
    async def run() -> None:
        async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
            session = await b.client.create()
            path, body = BODIES[0]
            await _post(b, session, path, body)
            await _post(b, session, path, body)
            assert len(b.engine.requests) == 2
            await _post(b, session, path, body, RETRY)
            assert len(b.engine.requests) == 3, "both answers had been delivered"
            await _post(b, session, path, body | {"max_tokens": 7}, RETRY)
            assert len(b.engine.requests) == 4

    asyncio.run(run())


def test_parallel_requests_are_not_mixed_up_by_a_retry(tiny_model: Path) -> None:
    """Two agents ask the same; one leaves and asks again: it gets the answer that nobody listens to."""

    async def run() -> None:
        gate = asyncio.Event()
        replies = iter([[5, STOP], [6, STOP]])
        async with bench(tiny_model, _gated(lambda body: answer(next(replies)), gate)) as b:
            session = await b.client.create()
            path, body = BODIES[0]
            await _leave(b, session, path, body, asked=1)
            stays = asyncio.create_task(_post(b, session, path, body))
            await _until(lambda: len(b.engine.requests) == 2)
            retry = asyncio.create_task(_post(b, session, path, body, RETRY))
            await asyncio.sleep(0.05)
            gate.set()
            assert await stays != await retry
            assert len(b.engine.requests) == 2
            assert len((await b.client.describe(session))["turns"]) == 2

    asyncio.run(run())


def test_a_generation_that_nobody_claims_is_aborted_after_the_grace_time(tiny_model: Path) -> None:
    async def run() -> None:
        gate = asyncio.Event()
        async with bench(tiny_model, _gated(lambda body: answer([5, STOP]), gate), session_disconnect_grace=0.2) as b:
            session = await b.client.create()
            path, body = BODIES[0]
            await _leave(b, session, path, body, asked=1)
            await _until(lambda: b.engine.cancelled == 1)
            assert (await b.client.describe(session))["turns"] == []
            gate.set()
            await _post(b, session, path, body, RETRY)
            assert len(b.engine.requests) == 2

    asyncio.run(run())


def test_the_official_client_times_out_and_gets_its_answer_by_retrying(tiny_model: Path) -> None:
    async def slow(body: dict[str, Any]) -> Any:
        await asyncio.sleep(1.5)
        return answer([5, STOP])

    async def run() -> None:
        async with bench(tiny_model, slow) as b:
            session = await b.client.create()
            agent = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key="-", timeout=1.0, max_retries=3)
            got = await agent.chat.completions.create(model="m", messages=ASK)
            assert got.usage is not None
            assert got.usage.completion_tokens == 2
            assert len(b.engine.requests) == 1
            await agent.close()

    asyncio.run(run())
