"""Images and files that tools return are told of in words, in every dialect; an option refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miles_lite.session.dialects import ChatCompletions, Google, Media, Messages, Responses
from miles_lite.session.errors import ApiError
from miles_lite.tito.chat_messages import text_of
from tests.session.engine import STOP, answer, bench

PNG = "iVBORw0KGgo="
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USE = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}
BODIES: list[tuple[Any, dict[str, Any], str]] = [
    (
        ChatCompletions,
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {
                    "role": "tool",
                    "tool_call_id": "c",
                    "content": [
                        {"type": "text", "text": "here: "},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    ],
                },
            ]
        },
        "messages[2].content[1]",
    ),
    (
        Responses,
        {
            "input": [
                {"role": "user", "content": "go"},
                {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [
                        {"type": "input_text", "text": "here: "},
                        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
                    ],
                },
            ]
        },
        "input[2].output[1]",
    ),
    (
        Messages,
        {
            "max_tokens": 5,
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": [USE]},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c",
                            "content": [{"type": "text", "text": "here: "}, {"type": "image", "source": SOURCE}],
                        }
                    ],
                },
            ],
        },
        "messages[2].content[0].content[1]",
    ),
    (
        Google,
        {
            "contents": [
                {"role": "user", "parts": [{"text": "go"}]},
                {"role": "model", "parts": [{"functionCall": {"id": "c", "name": "look", "args": {}}}]},
                {
                    "role": "user",
                    "parts": [
                        {
                            "functionResponse": {
                                "id": "c",
                                "name": "look",
                                "response": {"output": "here: "},
                                "parts": [{"inlineData": {"mimeType": "image/png", "data": PNG}}],
                            }
                        }
                    ],
                },
            ]
        },
        "contents[2].parts[0].functionResponse.parts[0]",
    ),
]


@pytest.mark.parametrize(("dialect", "body", "path"), BODIES)
def test_a_text_says_what_was_left_out(dialect: Any, body: dict[str, Any], path: str) -> None:
    said = text_of(dialect().parse(body).messages[-1]["content"]).replace("\n", "")
    assert said == "here: [image (image/png) left out: the model reads text only]"
    with pytest.raises(ApiError) as refused:
        dialect(Media(refused=True)).parse(body)
    assert refused.value.param == path


async def test_a_conversation_with_an_image_stays_one_sample(tiny_model: Path) -> None:
    async def run(images: str) -> tuple[int, list[Any]]:
        async with bench(tiny_model, lambda body: answer([5, STOP]), session_tool_images=images) as b:
            session = await b.client.create()
            messages: list[Any] = list(BODIES[0][1]["messages"])
            for _ in range(3):
                status, said = await b.chat(session, messages)
                if status != 200:
                    break
                messages += [said["choices"][0]["message"], {"role": "user", "content": "on"}]
            return status, [turn["parent"] for turn in (await b.client.describe(session))["turns"]]

    assert await run("placeholder") == (200, [None, 0, 1])
    assert await run("refuse") == (400, [])
