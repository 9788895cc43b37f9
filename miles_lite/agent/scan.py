"""What a model's reply means: a tool call, an answer, or neither.

Invariant: a reply that is neither form is handed back whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from miles_lite.process.json_types import Json, parsed
from miles_lite.tito.json_object import first_object


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is whatever JSON value the model wrote there."""

    tool: str
    arguments: Json
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`fallback`: the reply had neither form, and its whole text is taken."""

    text: str
    fallback: bool = False


def read_reply(text: str) -> Call | Answer:
    """`{"tool": name, "arguments": {...}}` (or `"name"` for `"tool"`, as in tool-call tags), `{"answer": ...}`, or
    the whole text as a fallback. What follows the object is ignored."""
    found = first_object(text)
    value = parsed(found) if found else None
    if isinstance(value, dict):
        name = value.get("tool", value.get("name"))
        if isinstance(name, str) and name:
            return Call(name, value.get("arguments", value.get("parameters", {})))
        if "answer" in value:
            answer = value["answer"]
            return Answer(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    return Answer(text.strip(), fallback=True)
