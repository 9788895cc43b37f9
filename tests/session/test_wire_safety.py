"""What the wire refuses, how streams fail, and what never reaches a client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from miles_lite.session.dialects import fields, limits
from miles_lite.tito import Tito
from tests.session.engine import STOP, answer, bench, failure
from tests.session.replies import saying

ASK: list[Any] = [{"role": "user", "content": "go"}]
TURNS: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": ASK}),
    ("responses", {"input": ASK}),
    ("messages", {"messages": ASK, "max_tokens": 100}),
]


async def test_a_stream_that_fails_on_its_way_says_so(tiny_model: Path, tito: Tito) -> None:
    requests: list[Any] = []

    def script(body: dict[str, Any]) -> Any:
        requests.append(body)
        return saying(tito)(body)[:20] if len(requests) == 1 else failure(500, "the engine died")

    async with bench(tiny_model, script, session_retry_seconds=0.2) as b:
        session = await b.client.create()
        for path, body in TURNS:
            requests.clear()
            raw = await b.raw(session, path, body | {"stream": True})
            *_, last = raw.strip().split(b"\n\n")
            event = orjson.loads(last.partition(b"data: ")[2])
            if path == "responses":
                assert event["type"] == "response.failed"
                assert "died" in event["response"]["error"]["message"]
            else:
                assert "died" in event["error"]["message"]
                assert event.get("type") == ("error" if path == "messages" else None)
            assert raw.count(b"data: ") > 5
        assert (await b.client.describe(session))["turns"] == []


async def test_an_engines_headers_stay_behind(tiny_model: Path) -> None:
    def script(body: dict[str, Any]) -> Any:
        headers = {"X-Secret": "1", "Content-Encoding": "identity", "Connection": "close", "Server": "engine"}
        return web.json_response(answer([5, STOP]), headers=headers)

    async with bench(tiny_model, script) as b, aiohttp.ClientSession() as http:
        url = f"{b.client.base_url(await b.client.create())}/chat/completions"
        async with http.post(url, json={"messages": ASK}) as response:
            assert set(response.headers) == {"Content-Type", "Content-Length", "Date", "Server"}
            assert response.headers["Server"] != "engine"


async def test_what_is_no_http_is_refused_without_a_word_in_the_log(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        url = URL(b.client.url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /health HTTP/1.1\r\nno header : x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()
    assert not caplog.records


async def test_limits_are_refused_in_each_dialects_shape(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LEAST_BYTES", 20_000)
    monkeypatch.setattr(limits, "BYTES_PER_TOKEN", 1)
    monkeypatch.setattr(fields, "MAX_MESSAGES", 50)
    deep: Any = {}
    for _ in range(fields.MAX_NESTING):
        deep = {"a": deep}

    async with bench(tiny_model, lambda body: answer([5, STOP])) as b, aiohttp.ClientSession() as http:
        session = await b.client.create()
        for path, body in TURNS:
            name = "input" if path == "responses" else "messages"
            for bad, status, words in (
                (body | {"metadata": deep}, 400, "nested deeper"),
                (body | {name: ASK * 51}, 400, "51 entries"),
                (body | {"user": "x" * 30_000}, 413, "over 20000 bytes"),
            ):
                async with http.post(f"{b.client.base_url(session)}/{path}", json=bad) as response:
                    error = await response.json()
                    assert response.status == status
                    assert words in error["error"]["message"]
                    assert error.get("type") == ("error" if path == "messages" else None)
            for data in (b"{", b"[]", b'{"messages": "\\ud800"}', b"\xff"):
                async with http.post(f"{b.client.base_url(session)}/{path}", data=data) as response:
                    assert response.status == 400
                    assert "error" in await response.json()
        for path in ("/v1/completions", "/generate", "/v1/embeddings", "/../health"):
            async with http.post(f"{b.client.url}/sessions/{session}{path}", json={}) as response:
                assert response.status in (404, 405)
        assert b.engine.requests == []


async def test_unknown_fields_are_ignored(tiny_model: Path) -> None:
    strange = {"store": True, "service_tier": "x", "metadata": {"a": 1}, "brand_new": [1, {"b": None}]}

    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        session = await b.client.create()
        for path, body in TURNS:
            got = orjson.loads(await b.raw(session, path, body | strange))
            assert "error" not in got or got["error"] is None
        for request in b.engine.requests:
            assert not set(request["sampling_params"]) & set(strange)
