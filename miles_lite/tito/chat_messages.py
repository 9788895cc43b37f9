"""Chat messages in the one shape a template takes.

Invariant: `normalise` is idempotent; its result holds no None, its content is text, and tool arguments are objects (or
JSON text, for templates that take no objects) wherever they parse as one. What the client sent is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import orjson

from miles_lite.process.json_types import Json, JsonMapping, JsonObject, is_unicode, parsed

MAX_ARGUMENT_NESTING = 50
"""Levels of a call's arguments: requests, which hold them some levels down, may have 64."""

Message = JsonMapping
Tools = Sequence[JsonMapping]


@dataclass(frozen=True, slots=True)
class Form:
    """What a template takes: tool `arguments` as objects or JSON text, `content` as a string or a list of parts."""

    arguments: Literal["object", "text"] = "object"
    content: Literal["text", "parts"] = "text"


PLAIN = Form()


def text_of(content: Json) -> str:
    """The text of a message's content: a string, None, or a list of text parts joined without separator."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def text_as(text: str, form: Form) -> Json:
    """Text as a message's content."""
    return text if form.content == "text" else [{"type": "text", "text": text}]


def normalise(message: Message, form: Form = PLAIN) -> JsonObject:
    """The message as templates get it. The role `developer` is `system`."""
    clean = {key: value for key, value in message.items() if value is not None}
    clean["content"] = text_as(text_of(message.get("content")), form)
    if clean.get("role") == "developer":
        clean["role"] = "system"
    if not clean.get("tool_calls"):
        clean.pop("tool_calls", None)
    else:
        clean["tool_calls"] = [_normalise_call(call, form) for call in clean["tool_calls"]]
    return clean


def _normalise_call(call: JsonMapping, form: Form) -> JsonObject:
    function = dict(call.get("function") or {})
    arguments = as_object(function.get("arguments"))
    if form.arguments == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function["arguments"] = arguments
    return {key: value for key, value in call.items() if value is not None} | {"function": function}


def as_object(arguments: Json) -> Json:
    """Tool arguments as an object; None and "" are {}, and text that is no JSON object stays as it is."""
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    found = parsed(arguments)
    return found if isinstance(found, dict) and is_unicode(json.dumps(found, ensure_ascii=False)) else arguments


class History(Sequence[Message]):
    """A conversation that is put together only when more than its last message is asked for."""

    def __init__(self, last: Message, whole: Callable[[], Sequence[Message]]) -> None:
        self._last, self._whole = last, whole

    def __len__(self) -> int:
        return len(self._whole())

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._last if index == -1 else self._whole()[index]


def readable_arguments(arguments: str) -> bool:
    """Whether the text is an object in JSON as all clients read it, and can send it back within a request.

    Python's own JSON also has NaN, infinite numbers and lone surrogates.
    """
    found = parsed(arguments, orjson.loads)
    return isinstance(found, dict) and not nested_beyond(found, MAX_ARGUMENT_NESTING)


def nested_beyond(value: Json, limit: int) -> bool:
    """Whether a JSON value has objects and lists in more than `limit` levels, its own included."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
