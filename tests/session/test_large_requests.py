"""One large request does not stop the others: it is refused by its size, or worked on beside them."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.session.dialects.limits import Limits
from miles_lite.session.history.agent_identity import caller_of
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.sessions import weight
from tests.session.engine import STOP, Bench, answer, bench
from tests.session.replies import CHAT_TOOLS

GO: list[Any] = [{"role": "user", "content": "go"}]
LARGE: list[Any] = [{"role": "user", "content": "word " * 10_000}]
BOUNDS = Limits(2048)


async def _post(b: Bench, data: bytes) -> tuple[int, dict[str, Any]]:
    url = f"{b.client.base_url(await b.client.create())}/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, data=data) as response:
        return response.status, (await response.json())["error"]


async def test_what_cannot_fit_the_context_is_refused_with_numbers(tiny_model: Path) -> None:
    text, brackets = "x" * (BOUNDS.body + 1), ",".join(["[]"] * (BOUNDS.containers + 1)) + " " * 2**18
    refused: list[tuple[str, int, str]] = [
        (json.dumps({"messages": [], "user": text}), 413, f"is over {BOUNDS.body} bytes, for a context of 2048 tokens"),
        ('{"messages": [], "user": [' + brackets + "]}", 413, f"objects and lists: {BOUNDS.containers} are the most"),
        (
            json.dumps({"messages": [{"role": "user", "content": text[: BOUNDS.characters + 1]}]}),
            400,
            f"{BOUNDS.characters} are the most",
        ),
        (
            json.dumps(
                {
                    "messages": GO,
                    "tools": [
                        {"type": "function", "function": {"name": "f", "description": text[: BOUNDS.characters + 1]}}
                    ],
                }
            ),
            400,
            "tools hold 10485",
        ),
        (json.dumps({"messages": [{"role": "user", "content": "a b " * 50_000}]}), 400, "resulted in at least"),
    ]

    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        for data, status, words in refused:
            got, error = await _post(b, data.encode())
            assert (got, words in error["message"]) == (status, True), error
            if status == 400:
                assert error["code"] == "context_length_exceeded"
        assert b.engine.requests == []


async def test_media_are_not_counted_as_text(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        image = "data:image/png;base64," + "A" * BOUNDS.body
        assert (await b.chat(await b.client.create(), GO, user=image))[0] == 200


class _Gate:
    """Holds up the placing of large requests, on whatever thread it is done, until it is opened."""

    def __init__(self, b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        assert b.server.service is not None
        self.entered, self.opened = threading.Event(), threading.Event()
        placer = b.server.service.turns._placer
        place = placer.place

        def held(tree: Tree, request: Any) -> Place:
            if request.messages[:1] == LARGE:
                self.entered.set()
                assert self.opened.wait(20)
            return place(tree, request)

        monkeypatch.setattr(placer, "place", held)


async def test_others_are_served_while_a_large_request_is_rendered(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tiny_model, lambda body: answer([5, STOP])) as b:
        gate = _Gate(b, monkeypatch)
        large = asyncio.create_task(b.chat(await b.client.create(), LARGE))
        assert await asyncio.to_thread(gate.entered.wait, 20)
        other = await b.client.create()
        for _ in range(3):
            assert (await b.chat(other, GO))[0] == 200
        assert not large.done()
        gate.opened.set()
        status, got = await large
        assert (status, got["error"]["code"]) == (400, "context_length_exceeded")


async def test_who_leaves_while_his_request_is_rendered_asks_no_engine(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"session_disconnect_grace": 0.0, "context_length": 10**6}
    async with bench(tiny_model, lambda body: answer([5, STOP]), **options) as b:
        gate, session = _Gate(b, monkeypatch), await b.client.create()
        large = asyncio.create_task(b.chat(session, LARGE))
        assert await asyncio.to_thread(gate.entered.wait, 20)
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        await asyncio.sleep(0.1)
        gate.opened.set()
        await asyncio.sleep(0.1)
        assert (await b.chat(session, GO))[0] == 200
        assert len(b.engine.requests) == 1


async def test_memory_counts_lists_and_objects(tiny_model: Path) -> None:
    """A message's parts and a call's arguments, and an agent's tools, once."""
    size = 200_000
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * size}]}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"deep": ["y" * size]}}}
    assert weight(parts) > size
    assert weight([{"role": "assistant", "tool_calls": [call]}]) > size
    tools = [{**CHAT_TOOLS[0], "function": {**CHAT_TOOLS[0]["function"], "description": "z " * (size // 2)}}]
    assert caller_of(None, tools).tools is tools

    async with bench(tiny_model, lambda body: answer([5, STOP]), context_length=10**6) as b:
        service = b.server.service
        assert service is not None
        before = service.stats()["session_bytes"]
        session = await b.client.create()
        _, got = await b.chat(session, GO, tools=tools)
        first = service.stats()["session_bytes"]
        assert first - before > size
        assert (await b.chat(session, [*GO, got["choices"][0]["message"], *GO], tools=tools))[0] == 200
        assert service.stats()["session_bytes"] - first < size, "tools are held once"
        await b.client.delete(session)
        assert service.stats()["session_bytes"] == before
