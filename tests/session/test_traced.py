"""One trace from a rollout, or from a harness that names its own, to the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from miles_lite.process import tracing
from miles_lite.tito import Tito
from tests.collector import collecting
from tests.session.engine import STOP, Bench, answer, bench, failure
from tests.session.replies import ids_of

TOOL = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
HARNESS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]


def call(tito: Tito) -> list[int]:
    said = {"name": "bash", "arguments": {"command": "ls"}}
    return [*ids_of(tito, f"<tool_call>\n{json.dumps(said)}\n</tool_call>"), STOP]


async def ask(b: Bench, session: str, messages: list[dict[str, Any]], headers: dict[str, str]) -> dict[str, Any]:
    url = f"{b.client.base_url(session)}/chat/completions"
    body = {"messages": messages, "tools": [TOOL]}
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as response:
        assert response.status == 200
        message: dict[str, Any] = (await response.json())["choices"][0]["message"]
        return message


async def test_a_rollouts_turns_tools_and_engine_requests_are_one_trace(tiny_model: Path, tito: Tito) -> None:
    said = iter([answer(call(tito)), failure(503), answer([40, STOP]), answer([41, STOP])])
    with collecting() as collector:
        async with bench(tiny_model, lambda body: next(said), otlp_endpoint=collector.url) as b:
            with tracing.span("rollout"):
                session = await b.client.create()
                rollout = tracing.headers()["traceparent"]
            called = await ask(b, session, HELLO, {})
            result = {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "a.py"}
            ended = await ask(b, session, [*HELLO, called, result], {})
            more = [*HELLO, called, result, ended, {"role": "user", "content": "and?"}]
            await ask(b, session, more, {"Traceparent": HARNESS})
        heard = [request["traceparent"].split("-") for request in b.engine.requests]
    turns, engines, (tool,) = collector.named("turn"), collector.named("engine request"), collector.named("tool")
    _, trace, span, _ = rollout.split("-")
    assert [(turn.trace, turn.parent) for turn in turns] == [
        *[(trace, span)] * 2,
        (HARNESS.split("-")[1], HARNESS.split("-")[2]),
    ]
    assert [(each.trace, each.parent) for each in engines] == [(turns[at].trace, turns[at].id) for at in (0, 1, 1, 2)]
    assert [(version, *named) for version, *named, _ in heard] == [("00", each.trace, each.id) for each in engines]
    assert [each.failed for each in engines] == [False, True, False, False]
    assert [each.attributes["attempt"] for each in engines] == [0, 0, 1, 0]
    assert engines[0].attributes["sampled_tokens"] == len(call(tito))
    assert (tool.trace, tool.parent, tool.attributes) == (trace, turns[1].id, {"names": "bash", "results": 1})
    assert tool.began >= turns[0].began
    assert {turn.attributes["session"] for turn in turns} == {session}


async def test_a_session_read_back_from_the_journal_stays_in_its_trace(tiny_model: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        async with bench(
            tiny_model, lambda body: answer([40, STOP]), otlp_endpoint=collector.url, run_dir=tmp_path
        ) as b:
            with tracing.span("rollout"):
                session = await b.client.create()
                _, trace, span, _ = tracing.headers()["traceparent"].split("-")
        async with bench(
            tiny_model, lambda body: answer([40, STOP]), otlp_endpoint=collector.url, run_dir=tmp_path
        ) as b:
            await ask(b, session, HELLO, {})
    assert [(turn.trace, turn.parent) for turn in collector.named("turn")] == [(trace, span)]


async def test_without_a_collector_the_engine_hears_of_none(tiny_model: Path) -> None:
    async with bench(tiny_model, lambda body: answer([40, STOP])) as b:
        await ask(b, await b.client.create(), HELLO, {"traceparent": HARNESS})
        assert [request["traceparent"] for request in b.engine.requests] == [None]
