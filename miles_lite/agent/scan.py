"""What a model's reply means: a tool call, an answer, or neither.

Invariant: `first_object` looks at each character once, and only braces outside strings count; a reply that is neither
form is handed back whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is whatever JSON value the model wrote there."""

    tool: str
    arguments: Any
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`fallback`: the reply had neither form, and its whole text is taken."""

    text: str
    fallback: bool = False


def first_object(text: str) -> str | None:
    """The first balanced `{...}` at the top level of `text`; None when there is none."""
    start, depth, in_string, escaped = 0, 0, False, False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = depth > 0  # a quotation mark in prose opens nothing
        elif character == "{":
            start, depth = (index, 1) if depth == 0 else (start, depth + 1)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                return text[start : index + 1]
    return None


def read_reply(text: str) -> Call | Answer:
    """`{"tool": name, "arguments": {...}}` (or `"name"` for `"tool"`, as in tool-call tags), `{"answer": ...}`, or
    the whole text as a fallback. What follows the object is ignored."""
    found = first_object(text)
    try:
        value = json.loads(found) if found else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        name = value.get("tool", value.get("name"))
        if isinstance(name, str) and name:
            return Call(name, value.get("arguments", value.get("parameters", {})))
        if "answer" in value:
            answer = value["answer"]
            return Answer(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False))
    return Answer(text.strip(), fallback=True)
