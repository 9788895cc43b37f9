"""Chat messages in the one shape templates are given.

Invariant: `normalise` is idempotent; its result holds no None, its content is a string, and tool arguments are objects
wherever they parse as one. What the client sent is never changed in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]


def text_of(content: Any) -> str:
    """The text of a message's content: a string, None, or a list of text parts joined without separator."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def normalise(message: Message) -> dict[str, Any]:
    """The message as templates get it. The role `developer` is `system`; tool arguments become objects."""
    clean = {key: value for key, value in message.items() if value is not None}
    clean["content"] = text_of(message.get("content"))
    if clean.get("role") == "developer":
        clean["role"] = "system"
    if not clean.get("tool_calls"):
        clean.pop("tool_calls", None)
    else:
        clean["tool_calls"] = [_normalise_call(call) for call in clean["tool_calls"]]
    return clean


def _normalise_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    function["arguments"] = as_object(function.get("arguments"))
    return {key: value for key, value in call.items() if value is not None} | {"function": function}


def as_object(arguments: Any) -> Any:
    """Tool arguments as an object; None and "" are {}, and text that is no JSON object stays as it is."""
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) and is_unicode(json.dumps(parsed, ensure_ascii=False)) else arguments


def is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which JSON escapes can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
