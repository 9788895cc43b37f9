"""The conversations that verification tries: where a role is appended after an assistant turn.

Invariant: every content and every reasoning is unique in its conversation, so that it can be looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from miles_lite.process.json_types import Json, JsonObject

ROLES = ("tool", "user", "system", "assistant")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@dataclass(frozen=True, slots=True)
class Boundary:
    """`appended` comes after `history`, whose last message is an assistant's."""

    history: list[JsonObject]
    appended: list[JsonObject]
    tools: list[JsonObject] | None


def contents(messages: Sequence[JsonObject]) -> list[str]:
    return [text for message in messages for text in (message.get("reasoning_content"), message["content"]) if text]


def boundaries(role: str) -> Iterator[Boundary]:
    """What to try for one role: with and without system prompt, tools, reasoning; early and late; several calls."""
    system: JsonObject = {"role": "system", "content": "Sys0 rule."}
    asked, again = _user("Ask0 this."), _user("Ask1 more.")
    result = [_result(number) for number in range(4)]
    for thought in ({}, {"reasoning_content": "Why0 think."}):
        said = _assistant("Said0 so.", **thought)
        called = _assistant("", tool_calls=[_call(0)], **thought)
        later = {"reasoning_content": "Why1 again."} if thought else {}
        twice = _assistant("Doing0 both.", tool_calls=[_call(1), _call(2)], **later)
        once = _assistant("Doing1 one.", tool_calls=[_call(3)], **later)
        worked = [system, asked, called, result[0]]
        final = _assistant("Done0 now.", **later)
        if role == "tool":
            yield Boundary([system, asked, called], [result[0]], TOOLS)
            yield Boundary([asked, called], [result[0]], TOOLS)
            yield Boundary([*worked, once], [result[3]], TOOLS)
            yield Boundary([*worked, twice], result[1:3], TOOLS)
            yield Boundary([*worked, final, again, once], [result[3]], TOOLS)
            yield Boundary([*worked, final, again, twice], result[1:3], TOOLS)
            continue
        new = {"role": role, "content": f"New0 {role}."}
        after = [again] if role == "assistant" else []
        yield Boundary([system, asked, said], [new, *after], None)
        yield Boundary([asked, said], [new, *after], None)
        yield Boundary([*worked, final], [new, *after], TOOLS)
        yield Boundary([system, asked, said, again, final], [new, *(_user("Ask2 last.") for _ in after)], None)
        if role == "system":
            yield Boundary([system, asked, said], [new, again], None)
        if role == "assistant":
            yield Boundary([system, asked, said], [new], None)
            yield Boundary([system, asked, said], [{**new, "reasoning_content": "Why2 not."}], None)
            yield Boundary([system, asked, said], [{**new, "reasoning_content": "Why2 not."}, again], None)


def _user(content: str) -> JsonObject:
    return {"role": "user", "content": content}


def _assistant(content: str, **more: Json) -> JsonObject:
    return {"role": "assistant", "content": content, **more}


def _result(number: int) -> JsonObject:
    return {
        "role": "tool",
        "tool_call_id": f"call{number:05}",
        "name": "get_weather",
        "content": f"Result{number} is.",
    }


def _call(number: int) -> JsonObject:
    function = {"name": "get_weather", "arguments": {"city": f"City{number}"}}
    return {"id": f"call{number:05}", "type": "function", "function": function}
