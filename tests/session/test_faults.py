"""Engines that hang, reset connections, talk nonsense and die, and clients by the thousand."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import pytest
from aiohttp import web

from miles_lite.config.engines import Routing
from miles_lite.session.client import SessionClient
from miles_lite.session.server import SessionServer
from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench, scripted, spec
from tests.session.replies import ids_of, saying

ASK: list[Any] = [{"role": "user", "content": "go"}]
_GOOD = answer([5, STOP])["meta_info"]
NONSENSE: list[Any] = [
    {"meta_info": 5},
    {"meta_info": {}},
    {"meta_info": _GOOD | {"completion_tokens": "two"}},
    {"meta_info": _GOOD | {"completion_tokens": 7}},
    {"meta_info": _GOOD | {"output_token_logprobs": [[None, 5], [-1.0, STOP]]}},
    {"meta_info": _GOOD | {"output_token_logprobs": [[-1.0], [-1.0]]}},
    {"meta_info": _GOOD | {"output_token_logprobs": [[-1.0, 2**40], [-1.0, -3]]}},
    {"meta_info": _GOOD | {"output_token_logprobs": 3}},
    {"meta_info": _GOOD | {"finish_reason": "stop"}},
    {"meta_info": _GOOD | {"weight_versions": [{"start": 0}]}},
    {"error": {"message": "out of memory"}},
    [1, 2],
    "text",
    None,
]


def _sent(value: Any, *, stream: bool) -> web.Response:
    data = orjson.dumps(value)
    if stream:
        return web.Response(body=b"data: " + data + b"\n\ndata: [DONE]\n\n", content_type="text/event-stream")
    return web.Response(body=data, content_type="application/json")


@pytest.mark.parametrize("stream", [False, True])
async def test_nonsense_is_never_a_turn_and_never_a_crash(tiny_model: Path, stream: bool) -> None:
    said: list[Any] = [None]
    script = lambda body: _sent(said[0], stream=stream)  # noqa: E731
    async with bench(tiny_model, script, session_retry_seconds=0.05) as b:
        session = await b.client.create()
        for said[0] in NONSENSE:
            ask = b.stream if stream else b.chat
            status, got = await ask(session, ASK)
            assert status == 502, (said[0], got)
        assert (await b.client.describe(session))["turns"] == []
        said[0] = answer([5, STOP])
        assert (await b.chat(session, ASK))[0] == 200 or stream


async def test_an_engine_that_hangs_is_given_up_in_time(tiny_model: Path) -> None:
    async def hang(body: dict[str, Any]) -> Any:
        await asyncio.sleep(60)

    async with scripted(hang) as (engine, url):
        made = spec(tiny_model, url, session_retry_seconds=0.3)
        server = SessionServer(replace(made, routing=Routing(router_timeout=0.3)))
        try:
            async with SessionClient(await server.start(), timeout=15.0) as client:
                session = await client.create()
                async with aiohttp.ClientSession() as http:
                    for stream in (False, True):
                        body = {"messages": ASK, "stream": stream}
                        path = f"{client.base_url(session)}/chat/completions"
                        async with http.post(path, json=body) as response:
                            assert response.status == 502
                            assert "no engine answered" in (await response.json())["error"]["message"]
                assert len(engine.requests) >= 4
                assert (await client.describe(session))["turns"] == []
        finally:
            await server.stop()


async def test_reset_connections_and_dying_engines_cost_no_token(tiny_model: Path, tito: Tito) -> None:
    """Of three requests one is reset at once, and of streams another in its middle; all answers are whole."""
    ids = [*ids_of(tito, "one two three four"), STOP]
    first = [0]

    async def script(body: dict[str, Any]) -> Any:
        number = len(b.engine.requests)
        done = len(body["input_ids"]) - first[0]
        if number % 3 == 1:
            raise ConnectionResetError
        if number % 3 == 2 and body["stream"]:
            return saying(tito, "one two three four")(body)[done : done + 2]
        events = []
        for end, token in enumerate(ids[done:], start=1):
            event = answer([token])
            event["meta_info"] |= {"completion_tokens": end}
            if end < len(ids) - done:
                event["meta_info"]["finish_reason"] = None
            events.append(event)
        return events if body["stream"] else answer(ids[done:])

    async with bench(tiny_model, script) as b:
        for stream in (False, True):
            session = await b.client.create({"temperature": 1.0, "max_new_tokens": 90})
            first[0] = await _prompt_tokens(b, session)
            status, _ = await (b.stream if stream else b.chat)(session, ASK)
            assert status == 200
            (sample,) = await b.client.collect(session)
            assert sample.tokens[sample.loss_mask == 1].tolist() == ids
            assert len((await b.client.describe(session))["turns"]) == 1


async def _prompt_tokens(b: Any, session: str) -> int:
    raw = await b.raw(session, "messages/count_tokens", {"messages": ASK})
    return int(orjson.loads(raw)["input_tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("journaled", [False, True])
async def test_two_thousand_sessions_leave_nothing_behind(
    tiny_model: Path, tmp_path: Path, journaled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Two turns each, a third of them left by their client, then deleted: memory, tasks and sockets are as before."""
    process = psutil.Process(os.getpid())

    async def once(b: Any, http: aiohttp.ClientSession, number: int) -> None:
        session = await b.client.create({"temperature": 1.0})
        url = f"{b.client.base_url(session)}/chat/completions"
        for turn in range(2):
            body: dict[str, Any] = {"messages": [{"role": "user", "content": f"{number} {turn} " + "word " * 100}]}
            body["stream"] = bool(number % 2)
            try:
                async with asyncio.timeout(0.005 if number % 3 == 0 else 60), http.post(url, json=body) as response:
                    await response.read()
            except TimeoutError:
                pass
        await b.client.collect(session)
        await b.client.delete(session)

    async def soak(b: Any, http: aiohttp.ClientSession, numbers: range) -> tuple[int, int, int]:
        room = asyncio.Semaphore(32)

        async def bounded(number: int) -> None:
            async with room:
                await once(b, http, number)

        await asyncio.gather(*(bounded(number) for number in numbers))
        for _ in range(100):
            if b.server.service.stats()["calls"] == 0:
                break
            await asyncio.sleep(0.05)
        gc.collect()
        return process.memory_info().rss, len(asyncio.all_tasks()), process.num_fds()

    script = lambda body: answer([*range(40, 140), STOP])  # noqa: E731
    run_dir = tmp_path if journaled else None
    async with (
        bench(tiny_model, script, run_dir=run_dir, session_disconnect_grace=0.1) as b,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32)) as http,
    ):
        assert b.server.service is not None
        before = await soak(b, http, range(500))
        b.engine.requests.clear()
        after = await soak(b, http, range(500, 2500))
        b.engine.requests.clear()
        assert b.server.service.live() == 0
        assert after[1] <= before[1] + 5
        assert after[2] <= before[2] + 10
        assert after[0] <= before[0] * 1.15
        held = b.server.service.sessions
        assert (held.bytes, len(held.resident())) == (0, 0)
        ours = [record for record in caplog.records if record.name.startswith("miles_lite")]
        assert [record.getMessage() for record in ours if record.levelno >= logging.WARNING] == []
