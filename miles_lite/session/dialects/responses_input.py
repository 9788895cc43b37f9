"""The `input` of a Responses request as chat messages.

Invariant: items that one answer brought become one assistant message again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miles_lite.session.dialects.fields import check_count, choice, items, need, take, unsupported
from miles_lite.session.dialects.media import Media, type_in
from miles_lite.session.dialects.responses_tools import ResponseTools, arguments_of
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Message

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_RESULTS = ("function_call_output", "custom_tool_call_output")
_MEDIA = {"input_image": "image", "input_file": "file", "input_audio": "audio"}


def conversation(body: Mapping[str, Any], tools: ResponseTools, media: Media) -> list[Message]:
    """Instructions, if any, and the input. Raises ApiError 400."""
    messages: list[Message] = []
    if instructions := take(body, "instructions", "a string"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not need(body, "input", "a list"):
        raise bad_request("input must be text or a list of at least one item", param="input")
    check_count(given or (), "input")
    turn: _Turn | None = None
    for path, item in items(body, "input"):
        kind = take(item, "type", "a string", f"{path}.") or "message"
        if kind == "reasoning" or kind in _CALLS or (kind == "message" and item.get("role") == "assistant"):
            if turn is None or turn.ends_before(kind):
                turn = _Turn()
                messages.append(turn.message)
            turn.add(kind, item, path, tools)
        else:
            turn = None
            messages.append(_told(kind, item, path, media))
    return messages


class _Turn:
    """An assistant message that is put together again."""

    def __init__(self) -> None:
        self.message: dict[str, Any] = {"role": "assistant", "content": None}
        self._last = ""

    def ends_before(self, kind: str) -> bool:
        """An answer thinks first and has no two texts in a row."""
        return kind == "reasoning" or kind == self._last == "message"

    def add(self, kind: str, item: Mapping[str, Any], path: str, tools: ResponseTools) -> None:
        self._last = kind
        if kind == "message":
            self.message["content"] = (self.message["content"] or "") + _text(item, "content", path)
        elif kind in _CALLS:
            name, space = need(item, "name", "a string", f"{path}."), take(item, "namespace", "a string", f"{path}.")
            given = need(item, _CALLS[kind], "a string", f"{path}.")
            arguments = given if kind == "function_call" else arguments_of(given)
            function = {"name": tools.shown(name, space), "arguments": arguments}
            call_id = need(item, "call_id", "a string", f"{path}.")
            self.message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        elif thought := _text(item, "content", path):
            self.message["reasoning_content"] = thought


def _told(kind: str, item: Mapping[str, Any], path: str, media: Media) -> Message:
    """What the harness says: a message or the result of a call."""
    if kind == "message":
        role = choice(item, "role", ("user", "system", "developer"), f"{path}.")
        return {"role": role, "content": _text(item, "content", path)}
    if kind in _RESULTS:
        call_id = need(item, "call_id", "a string", f"{path}.")
        return {"role": "tool", "tool_call_id": call_id, "content": _text(item, "output", path, media)}
    raise unsupported(f"items of type {kind!r} are not supported", f"{path}.type")


def _text(item: Mapping[str, Any], name: str, path: str, media: Media | None = None) -> str:
    """With `media`, what is no text is told of."""
    value = item.get(name)
    if isinstance(value, str):
        return value
    texts = []
    for at, part in items(item, name, f"{path}."):
        if media is not None and part.get("type") in _MEDIA:
            texts.append(media.told(_MEDIA[part["type"]], type_in(part.get("image_url") or part.get("file_data")), at))
            continue
        choice(part, "type", (*_TEXTS, "refusal"), f"{at}.")
        texts.append(need(part, "refusal" if part["type"] == "refusal" else "text", "a string", f"{at}."))
    return "".join(texts)
