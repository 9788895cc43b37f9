"""A client's side of sessions: streams put together, timelines read, all against a scripted HTTP server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from miles_lite.tito.cut_render import Sampled
from miles_lite.verify.chat_client import Chat, ChatError
from miles_lite.verify.driven_sessions import timeline_to


def chat(answer: Callable[[dict[str, Any]], httpx.Response], *, stream: bool = True) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        transport = httpx.MockTransport(lambda request: answer(json.loads(request.content)))
        async with httpx.AsyncClient(transport=transport) as http:
            return await Chat(http, "http://session/v1", [], 16, stream)([{"role": "user", "content": "hi"}], "auto")

    return asyncio.run(run())


def events(*deltas: dict[str, Any], end: str = "data: [DONE]\n\n") -> str:
    chunks = ({"choices": [{"index": 0, "delta": delta}]} for delta in deltas)
    return ": keep-alive\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


def test_a_stream_is_put_together() -> None:
    whole = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    begun = {"index": 1, "id": "b", "function": {"name": "g", "arguments": '{"y"'}}
    rest = {"index": 1, "function": {"arguments": ": 2}"}}
    text = events(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Be"},
        {"reasoning_content": "cause"},
        {"content": "So"},
        {"tool_calls": [whole]},
        {"tool_calls": [begun]},
        {"tool_calls": [rest]},
    )
    reply = chat(lambda body: httpx.Response(200, text=text if body["stream"] else ""))
    assert reply["reasoning_content"] == "Because"
    assert reply["content"] == "So"
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in reply["tool_calls"]]
    assert calls == [("a", "f", '{"x": 1}'), ("b", "g", '{"y": 2}')]


def test_a_reply_of_calls_alone_has_no_content() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    assert chat(lambda body: httpx.Response(200, text=events({"tool_calls": [call]})))["content"] is None


def test_a_whole_answer_is_taken_as_it_is() -> None:
    message = {"role": "assistant", "content": "hello"}
    body = {"choices": [{"message": message}]}
    assert chat(lambda asked: httpx.Response(200, json=body), stream=False) == message


async def test_the_sessions_key_goes_with_every_request() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, text=events({"content": "a"}))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await Chat(http, "http://session/v1", [], 16, api_key="sk-1")([], "auto")
    assert seen == ["Bearer sk-1"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(400, text="bad role"), "HTTP 400: bad role"),
        (httpx.Response(200, text=events({"content": "a"}, end="")), "without its end mark"),
        (httpx.Response(200, text='data: {"error": {"message": "engine died"}}\n\n'), "engine died"),
    ],
)
def test_anything_but_a_whole_answer_is_an_error(answer: httpx.Response, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        chat(lambda body: answer)


def turn(number: int, parent: int | None, prompt: list[int], output: list[int], drop: int = 0) -> dict[str, Any]:
    return {
        "turn": number,
        "parent": parent,
        "messages": [{"role": "user", "content": str(number)}],
        "reply": {"role": "assistant", "content": str(number)},
        "drop": drop,
        "prompt_ids": prompt,
        "output_ids": output,
        "finish_reason": "stop" if output[-1] == 9 else "length",
    }


def test_a_timeline_leaves_stop_tokens_out_of_replies() -> None:
    turns = {0: turn(0, None, [1, 2], [3, 9]), 1: turn(1, 0, [4], [5, 6]), 2: turn(2, 1, [7], [8, 9])}
    line = timeline_to(turns, 2, frozenset({9}))
    assert line.ids == [1, 2, 3, 9, 4, 5, 6, 7, 8, 9]
    assert line.sampled == [Sampled(1, 2, 3), Sampled(3, 5, 7), Sampled(5, 8, 9)]
    assert [message["content"] for message in line.messages] == ["0", "0", "1", "1", "2", "2"]


def test_a_dropped_token_is_in_no_timeline() -> None:
    turns = {0: turn(0, None, [1], [3, 9]), 1: turn(1, 0, [4], [5], drop=1), 2: turn(2, 1, [7], [8], drop=1)}
    line = timeline_to(turns, 2, frozenset({9}))
    assert line.ids == [1, 3, 4, 7, 8]
    assert line.sampled == [Sampled(1, 1, 2), Sampled(3, 3, 3), Sampled(5, 4, 5)]
