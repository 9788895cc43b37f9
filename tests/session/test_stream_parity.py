"""In every dialect a stream adds up to the plain answer of the same tokens, field for field and in its order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miles_lite.session.dialects import DIALECTS, ChatCompletions, Dialect, Google, Messages, Responses, Stamp
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta, rest
from miles_lite.session.dialects.responses_shape import Form
from miles_lite.session.dialects.responses_tools import Called, ResponseTools
from miles_lite.session.engine.engine_client import Generation
from miles_lite.session.engine.engine_reply import Reader
from miles_lite.session.engine.engine_stream import watcher
from miles_lite.session.engine.prompt import Prompt
from miles_lite.session.engine.sampling import Sampling
from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.match import FieldMatcher
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.shared_request import Call
from miles_lite.tito import Suffix, Tito
from tests.session.engine import STOP
from tests.session.replies import CHAT_TOOLS

STAMP = Stamp("answer_1", 7)
CALL = '<tool_call>\n{"name": "run", "arguments": {"cmd": "ls"}}\n</tool_call>'
texts = st.lists(
    st.one_of(
        st.sampled_from(
            ["<think>", "</think>", "<think>\n", CALL, CALL, CALL[:-4], CALL[4:], "<tool_call>{x}</tool_call>"]
        ),
        st.sampled_from(["\n", "\n\n", " ", "END", "EN", "D", "ho, é🎈", "<|im_end|>", "<|endoftext|>", "\ufffd"]),
        st.text(max_size=3),
    ),
    max_size=8,
).map("".join)


FORMS: dict[Any, list[Any]] = {
    ChatCompletions: [None],
    Responses: [Form(ResponseTools()), Form(ResponseTools(called={"run": Called("run", "space", custom=True)}))],
    Messages: [None],
    Google: [(thoughts, array) for thoughts in (False, True) for array in (False, True)],
}


@pytest.mark.parametrize("dialect", [dialect() for dialect in DIALECTS.values()], ids=lambda each: type(each).__name__)
@given(data=st.data())
def test_a_stream_adds_up_to_the_plain_answer(tito: Tito, dialect: Dialect, data: st.DataObject) -> None:
    ids = list(map(int, tito.encoder.encode(data.draw(texts))))
    ids += data.draw(st.lists(st.integers(10, 500), max_size=2))  # which may cut a UTF-8 character
    stop = data.draw(st.sampled_from(["token", "string", "length"]))
    ids += [STOP] if stop == "token" else []
    request = ChatRequest(
        messages=[],
        tools=data.draw(st.sampled_from([None, CHAT_TOOLS])),
        callable_tools=CHAT_TOOLS,
        options={},
        stream=True,
        logprobs=data.draw(st.booleans()),
        body={},
        form=data.draw(st.sampled_from(FORMS[type(dialect)])),
    )
    finish: dict[str, dict[str, Any]] = {"token": {"type": "stop", "matched": STOP}, "length": {"type": "length"}}
    generation = Generation(
        np.asarray(ids, np.int32),
        np.zeros(len(ids), np.float32),
        finish=finish.get(stop, {"type": "stop", "matched": "END"}),
    )
    cuts = sorted(data.draw(st.sets(st.sampled_from(range(1, len(ids) + 1)), max_size=9))) if ids else []
    said, answer = asyncio.run(_heard(tito, request, generation, cuts, opened=data.draw(st.booleans())))
    events = dialect.events(request, STAMP)
    stream = events.start(1) + b"".join(map(events.delta, said))
    if remaining := rest(answer, said):
        stream += events.delta(remaining)
    stream += events.finish(answer)
    expected = dialect.answer(request, answer)
    pieces = json.loads(stream) if stream.startswith(b"[") else _events(stream)
    assert ASSEMBLE[type(dialect)](pieces) == SHOWN[type(dialect)](expected)


async def _heard(
    tito: Tito, request: ChatRequest, generation: Generation, cuts: list[int], *, opened: bool
) -> tuple[list[Delta], ChatAnswer]:
    """What a stream says while the reply grows, and the answer."""
    reader, said = Reader(tito), list[Delta]()
    params = {"stop": ["END"], "max_new_tokens": 99}
    suffix = Suffix(np.zeros(1, np.int32), opens_reasoning=opened)
    prompt = Prompt(Place(None, 0, Caller(None, b""), "first"), suffix, Sampling(params, 0), b"")

    async def take(delta: Delta) -> None:
        said.append(delta)

    watch = watcher(tito, request, prompt, take)
    for cut in cuts:
        await watch(generation.ids[:cut])
    call = Call(b"", STAMP, grace=1.0, release=lambda call: None)
    entry = reader.entry(request, prompt, generation, started=0.0, call=call, superseded=None)
    return said, reader.answer(request, entry.commit(Tree(FieldMatcher())), entry.receipt)


def _events(stream: bytes) -> list[dict[str, Any]]:
    lines = [line[6:] for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _chat(events: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"content": ""}
    logprobs, reason, order = None, None, []
    for event in events:
        (choice,) = event["choices"]
        delta = choice["delta"]
        order += [name for name in delta if name != "role" and delta[name]]
        for name in ("reasoning_content", "content"):
            if delta.get(name):
                message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", ()):
            assert call.pop("index") == len(message.setdefault("tool_calls", []))
            message["tool_calls"].append(call)
        logprobs, reason = choice["logprobs"] or logprobs, choice["finish_reason"] or reason
    assert order == sorted(order, key=("reasoning_content", "content", "tool_calls").index)
    return {"message": message, "logprobs": logprobs, "finish_reason": reason}


def _shown_chat(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    message = {name: value for name, value in choice["message"].items() if name != "role"}
    message["content"] = message["content"] or ""
    return {"message": message, "logprobs": choice["logprobs"], "finish_reason": choice["finish_reason"]}


def _responses(events: list[dict[str, Any]]) -> dict[str, Any]:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    grown: dict[int, str] = {}
    done: list[Any] = []
    for event in events:
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] = grown.get(event["output_index"], "") + event["delta"]
        if event["type"] == "response.output_item.done":
            assert event["output_index"] == len(done)
            done.append(event["item"])
    whole: dict[str, Any] = events[-1]["response"]
    texts = [item.get("arguments") or item.get("input") or item["content"][0]["text"] for item in done]
    assert texts == [grown[index] for index in range(len(done))]
    assert whole["output"] == done
    return whole


def _messages(events: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = events[0]["message"]
    pieces: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                pieces[event["index"]] = pieces.get(event["index"], "") + delta["partial_json"]
                block["input"] = json.loads(pieces[event["index"]])
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] += delta[name]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def _google(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Texts of one kind that follow each other are one part."""
    parts: list[dict[str, Any]] = []
    for event in events:
        for part in event["candidates"][0]["content"]["parts"]:
            last = parts[-1] if parts else {}
            if "text" in part and "text" in last and part.get("thought") == last.get("thought"):
                last["text"] += part["text"]
            elif part != {"text": ""}:
                parts.append(part)
    whole = events[-1]
    whole["candidates"][0]["content"]["parts"] = parts
    return whole


ASSEMBLE: dict[Any, Callable[[list[dict[str, Any]]], dict[str, Any]]] = {
    ChatCompletions: _chat,
    Responses: _responses,
    Messages: _messages,
    Google: _google,
}
SHOWN: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {
    ChatCompletions: _shown_chat,
    Responses: lambda answer: answer,
    Messages: lambda answer: answer,
    Google: lambda answer: answer,
}
