"""Sessions off loopback need their keys; metrics and log lines say what happened to whom."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from miles_lite.agent.session_client import AgentSession
from miles_lite.config.places import Hosts
from miles_lite.errors import UserError
from miles_lite.process.addresses import loopback
from miles_lite.session.client import SessionClient, SessionError
from miles_lite.session.logs import SESSION, KeyValues
from miles_lite.session.server import SessionServer
from tests.session.engine import STOP, answer, bench, spec

ASK: list[Any] = [{"role": "user", "content": "go"}]


def test_loopback_is_recognised() -> None:
    assert all(map(loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(loopback, ("", "0.0.0.0", "::", "10.0.0.1", "host")))


async def test_off_loopback_each_session_needs_its_key(tiny_model: Path, tmp_path: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP]), bind_host="0.0.0.0", run_dir=tmp_path) as b:
        session, other = await b.client.create(), await b.client.create()
        key = b.client.api_key(session)
        base = b.client.base_url(session)
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as agent:
            assert (await agent.chat.completions.create(model="m", messages=ASK)).choices
        for wrong in ("none", b.client.api_key(other), key[:-1]):
            async with openai.AsyncOpenAI(base_url=base, api_key=wrong, max_retries=0) as agent:
                with pytest.raises(openai.AuthenticationError, match="POST /sessions"):
                    await agent.chat.completions.create(model="m", messages=ASK)
        async with anthropic.AsyncAnthropic(base_url=base[:-3], api_key=key, max_retries=0) as claude:
            await claude.messages.create(model="m", max_tokens=5, messages=ASK)
        async with anthropic.AsyncAnthropic(base_url=base[:-3], api_key="x", max_retries=0) as claude:
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await claude.messages.create(model="m", max_tokens=5, messages=ASK)
            body: Any = refused.value.body
            assert body["error"]["type"] == "authentication_error"
        assert (await b.chat(session, ASK))[0] == 401
        assert (await b.chat("nobody", ASK))[0] == 401
        async with SessionClient(b.client.url) as stranger:
            for call in (stranger.collect, stranger.describe, stranger.turns, stranger.delete):
                with pytest.raises(SessionError, match="401"):
                    await call(session)
        assert len((await b.client.describe(session))["turns"]) == 2
    async with bench(tiny_model, lambda body: answer([5, STOP]), bind_host="0.0.0.0", run_dir=tmp_path) as b:
        agent = openai.AsyncOpenAI(base_url=b.client.base_url(session), api_key=key, max_retries=0)
        assert (await agent.chat.completions.create(model="m", messages=ASK)).choices, "after a restart too"
        await agent.close()


async def test_opening_a_session_needs_the_admin_key_where_there_is_one(tiny_model: Path) -> None:
    server = SessionServer(replace(spec(tiny_model), hosts=Hosts(bind_host="0.0.0.0"), admin_key="k"))
    url = await server.start()
    try:
        for key in (None, "other"):
            async with SessionClient(url, admin_key=key) as stranger:
                with pytest.raises(SessionError, match="opening a session needs the admin key") as refused:
                    await stranger.create()
            assert refused.value.status == 401
            with pytest.raises(UserError, match="opening a session needs the admin key"):
                await asyncio.to_thread(AgentSession(url, admin_key=key).__enter__)
        async with SessionClient(url, admin_key="k") as client:
            assert (await client.describe(await client.create()))["turns"] == []
    finally:
        await server.stop()


async def test_metrics_are_what_prometheus_reads(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b, aiohttp.ClientSession() as http:
        session = await b.client.create()
        await b.chat(session, ASK)
        async with http.get(f"{b.client.url}/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
        found = {sample.name: sample.value for family in families for sample in family.samples}
        assert found["miles_lite_session_turns_total"] == 1
        assert found["miles_lite_session_sessions"] == 1
        assert found["miles_lite_session_turn_seconds_count"] == 1
        assert found["miles_lite_session_session_bytes"] > 0


async def test_log_lines_name_the_session(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(KeyValues().format(record))

    async def run() -> None:
        async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
            await b.chat("lost-one", ASK)

    logger, handler = logging.getLogger("miles_lite.session"), Keep()
    logger.addHandler(handler)
    try:
        await run()
    finally:
        logger.removeHandler(handler)
    assert SESSION.get() is None
    (line,) = [line for line in lines if "nobody opened" in line]
    assert 'session="lost-one"' in line
    assert "level=warning" in line
    assert json.loads(line.partition("msg=")[2]).startswith("a request named")
