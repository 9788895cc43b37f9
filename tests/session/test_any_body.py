"""Whatever JSON stands wherever in a body, a dialect reads it or refuses it with a message."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from miles_lite.session.dialects import DIALECTS
from miles_lite.session.errors import ApiError

_SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
_TEXT = {"type": "text", "text": "go"}
_PICTURE = {"url": "data:image/png;base64,aGk="}

OLDER: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "t"},
    ],
    "functions": [{"name": "f", "parameters": _SCHEMA}],
    "function_call": {"name": "f"},
}
BODIES: dict[str, dict[str, Any]] = {
    "Chat completions": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": ["x", _TEXT]},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "r",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": [_TEXT, {"type": "image_url", "image_url": _PICTURE}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": _SCHEMA}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": _SCHEMA}},
        "stream_options": {"include_usage": True},
        "thinking": {"type": "enabled"},
        "reasoning": {"enabled": True},
        "chat_template_kwargs": {"enable_thinking": True},
        "metadata": {"agent": "a"},
        "stop": ["x"],
    },
    "Responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "r"}], "content": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "t"}]},
        ],
        "instructions": "i",
        "tools": [{"type": "function", "name": "f", "parameters": _SCHEMA}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": _SCHEMA}},
        "reasoning": {"effort": "low"},
        "previous_response_id": "resp_1",
    },
    "Messages": {
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "go"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "r", "signature": ""},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"q": "x"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [_TEXT]}]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 9},
        "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}},
    },
    "generateContent": {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "go"}]},
            {
                "role": "model",
                "parts": [{"text": "r", "thought": True}, {"functionCall": {"name": "f", "args": {"q": "x"}}}],
            },
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"output": "t"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": _SCHEMA}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "responseSchema": _SCHEMA,
            "thinkingConfig": {"includeThoughts": True},
            "stopSequences": ["x"],
        },
    },
}
JUNK: list[Any] = [None, True, False, 0, -1, 2**70, 1e308, "", "x", "\x00", [], {}, [[]], [None], {"": None}]
JUNK += [{"type": "text"}, [{"role": "tool"}], {"role": []}, [{"type": {}}]]


def _places(value: Any) -> Iterator[tuple[str | int, ...]]:
    """The paths of all that a body holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (key,)
        yield from ((key, *rest) for rest in _places(item))


def _with(body: dict[str, Any], path: tuple[str | int, ...], junk: Any) -> dict[str, Any]:
    changed: Any = copy.deepcopy(body)
    *above, last = path
    at = changed
    for key in above:
        at = at[key]
    at[last] = junk
    return dict(changed)


@pytest.mark.parametrize(("name", "body"), [*BODIES.items(), ("Chat completions", OLDER)])
def test_any_value_anywhere_is_read_or_refused(name: str, body: dict[str, Any]) -> None:
    dialect = DIALECTS[name]()
    dialect.parse(body)
    paths = {*_places(body), *((field.partition(".")[0],) for field in dialect.fields.rows)}
    broken: dict[str, str] = {}
    for path, junk in itertools.product(sorted(paths, key=repr), JUNK):
        try:
            dialect.parse(_with(body, path, junk))
        except ApiError as error:
            broken |= {} if error.status < 500 else {f"{path} = {junk!r}": str(error)}
        except Exception as error:  # noqa: BLE001 - all that break it are shown together
            broken[f"{path} = {junk!r}"] = repr(error)
    assert broken == {}
