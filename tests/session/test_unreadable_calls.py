"""Calls that a model wrote and no client could read are text, in every dialect, and the conversation goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miles_lite.tito import Tito
from tests.session.engine import bench
from tests.session.replies import ANTHROPIC_TOOLS, CHAT_TOOLS, FUNCTION, RESPONSES_TOOLS, saying

GOOGLE_TOOLS = [{"functionDeclarations": [{"name": FUNCTION["name"], "parameters": FUNCTION["parameters"]}]}]
ASK = {"role": "user", "content": "go"}
ASKED: dict[str, dict[str, Any]] = {
    "v1/chat/completions": {"messages": [ASK], "tools": CHAT_TOOLS},
    "v1/responses": {"input": [ASK], "tools": RESPONSES_TOOLS},
    "v1/messages": {"messages": [ASK], "max_tokens": 900, "tools": ANTHROPIC_TOOLS},
    "v1beta/models/m:generateContent": {"contents": [{"parts": [{"text": "go"}]}], "tools": GOOGLE_TOOLS},
    "v1beta/models/m:streamGenerateContent": {"contents": [{"parts": [{"text": "go"}]}], "tools": GOOGLE_TOOLS},
}


@pytest.mark.parametrize("argument", ["NaN", "1e999", '"\\ud800"', "[" * 60 + "]" * 60])
async def test_what_no_client_can_read_is_no_call(tiny_model: Path, tito: Tito, argument: str) -> None:
    text = f'<tool_call>\n{{"name": "run", "arguments": {{"x": {argument}}}}}\n</tool_call>'

    async with bench(tiny_model, saying(tito, text)) as b, aiohttp.ClientSession() as http:
        session = await b.client.create()
        for path, body in ASKED.items():
            for streams in ({},) if path.startswith("v1beta") else ({}, {"stream": True}):
                async with http.post(f"{b.client.url}/sessions/{session}/{path}", json=body | streams) as response:
                    assert response.status == 200
                    assert '"error":{' not in (await response.text())
        _, told = await b.chat(session, [ASK], tools=CHAT_TOOLS)
        reply = told["choices"][0]["message"]
        assert reply["content"] == text
        await b.chat(session, [ASK, reply, {"role": "user", "content": "on"}], tools=CHAT_TOOLS)
        assert (await b.client.describe(session))["turns"][-1]["parent"] is not None
