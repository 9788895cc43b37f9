"""What the Responses and Anthropic dialects call reasoning is the reply's reasoning when it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.session.dialects import Messages, Responses
from miles_lite.session.history.match import MATCHERS
from miles_lite.tito import Tito
from tests.session.engine import bench
from tests.session.replies import ANTHROPIC_TOOLS, RESPONSES_TOOLS, saying

STORED = {
    "role": "assistant",
    "content": "I look.",
    "reasoning_content": "why",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "run", "arguments": '{"cmd": "ls"}'}}],
}


def _anthropic(thought: str | None) -> Any:
    thinking = [] if thought is None else [{"type": "thinking", "thinking": thought, "signature": "s"}]
    call = {"type": "tool_use", "id": "c1", "name": "run", "input": {"cmd": "ls"}}
    said = {"role": "assistant", "content": [*thinking, {"type": "text", "text": "I look."}, call]}
    return Messages().parse({"messages": [{"role": "user", "content": "hi"}, said], "max_tokens": 1}).messages[-1]


def _responses(thought: str | None) -> Any:
    content = [{"type": "reasoning_text", "text": thought}]
    reasoning = [] if thought is None else [{"type": "reasoning", "id": "r", "summary": [], "content": content}]
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    call = {"type": "function_call", "call_id": "c1", "name": "run", "arguments": '{"cmd":"ls"}'}
    return Responses().parse({"input": [{"role": "user", "content": "hi"}, *reasoning, text, call]}).messages[-1]


@pytest.mark.parametrize("read", [_anthropic, _responses])
def test_reasoning_is_compared_whatever_the_dialect(read: Any) -> None:
    assert read("why")["reasoning_content"] == "why"
    same = {thought: MATCHERS["replay"].same_reply(STORED, read(thought)) for thought in ("why", None, "other")}
    assert same == {"why": True, None: True, "other": False}
    strict = {thought: MATCHERS["loose_tool_call"].same_reply(STORED, read(thought)) for thought in ("why", None)}
    assert strict == {"why": True, None: False}


@pytest.mark.parametrize("thought", ["why not", None, "changed"])
async def test_thinking_blocks_find_their_turn(tiny_model: Path, tito: Tito, thought: str | None) -> None:
    async with bench(tiny_model, saying(tito)) as b, aiohttp.ClientSession() as http:
        url = b.client.base_url(await b.client.create()) + "/messages"
        ask: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 500, "tools": ANTHROPIC_TOOLS}
        got = await (await http.post(url, json=ask)).json()
        kept = [block for block in got["content"] if block["type"] != "thinking"]
        if thought is not None:
            kept = [{"type": "thinking", "thinking": thought, "signature": ""}, *kept]
        calls = [block["id"] for block in kept if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call, "content": "ok"} for call in calls]
        ask["messages"] += [{"role": "assistant", "content": kept}, {"role": "user", "content": results}]
        assert (await http.post(url, json=ask)).status == 200
        assert b.server.service is not None
        turns = (await b.server.service.tree(url.split("/")[4])).turns
        assert (turns[1].parent is turns[0]) is (thought != "changed")


async def test_reasoning_items_find_their_turn(tiny_model: Path, tito: Tito) -> None:
    async with bench(tiny_model, saying(tito)) as b, aiohttp.ClientSession() as http:
        url = b.client.base_url(await b.client.create()) + "/responses"
        ask: Any = {"input": [{"role": "user", "content": "hi"}], "tools": RESPONSES_TOOLS}
        got = await (await http.post(url, json=ask)).json()
        assert got["output"][0]["type"] == "reasoning"
        calls = [item["call_id"] for item in got["output"] if item["type"] == "function_call"]
        ask["input"] += got["output"]
        ask["input"] += [{"type": "function_call_output", "call_id": call, "output": "ok"} for call in calls]
        assert (await http.post(url, json=ask)).status == 200
        assert b.server.service is not None
        turns = (await b.server.service.tree(url.split("/")[4])).turns
        assert turns[1].parent is turns[0]
        assert [message["role"] for message in turns[1].messages] == ["tool", "tool"]
