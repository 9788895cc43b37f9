"""The `input` of a Responses request as chat messages.

Invariant: items that one answer brought become one assistant message again.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.dialects.fields import check_count, needed
from miles_lite.session.dialects.media import Media, type_in
from miles_lite.session.dialects.responses_body import (
    CustomCallItem,
    CustomResult,
    FunctionCallItem,
    FunctionResult,
    MessageItem,
    Part,
    ReasoningItem,
    ResponsesBody,
    ResultPart,
    Said,
)
from miles_lite.session.dialects.responses_tools import ResponseTools, arguments_of
from miles_lite.tito.chat_messages import Message

_MEDIA = {"input_image": "image", "input_file": "file", "input_audio": "audio"}


def with_types(body: JsonMapping) -> JsonMapping:
    """The body, whose items of no type are messages."""
    given = body.get("input")
    if not isinstance(given, list):
        return body
    check_count(given, "input")
    items = [
        {**item, "type": "message"} if isinstance(item, dict) and item.get("type") is None else item for item in given
    ]
    return {**body, "input": items}


def conversation(body: ResponsesBody, tools: ResponseTools, media: Media) -> list[Message]:
    """Instructions, if any, and the input. Raises ApiError 400."""
    messages: list[Message] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    turn: _Turn | None = None
    for number, item in enumerate(body.input):
        path = f"input[{number}]"
        if isinstance(item, FunctionResult | CustomResult):
            turn = None
            content = _text(item.output, f"{path}.output", media)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            turn = None
            messages.append({"role": item.role, "content": _text(item.content, f"{path}.content")})
        else:
            if turn is None or turn.ends_before(item):
                turn = _Turn()
                messages.append(turn.message)
            turn.add(item, path, tools)
    return messages


class _Turn:
    """An assistant message that is put together again."""

    def __init__(self) -> None:
        self.message: JsonObject = {"role": "assistant", "content": None}
        self._last: Said | MessageItem | None = None

    def ends_before(self, item: Said | MessageItem) -> bool:
        """An answer thinks first and has no two texts in a row."""
        return isinstance(item, ReasoningItem) or (
            isinstance(item, MessageItem) and isinstance(self._last, MessageItem)
        )

    def add(self, item: Said | MessageItem, path: str, tools: ResponseTools) -> None:
        self._last = item
        if isinstance(item, MessageItem):
            self.message["content"] = (self.message["content"] or "") + _text(item.content, f"{path}.content")
        elif isinstance(item, ReasoningItem):
            if thought := _text(item.content, f"{path}.content"):
                self.message["reasoning_content"] = thought
        else:
            self.message.setdefault("tool_calls", []).append(_call(item, tools))


def _call(item: FunctionCallItem | CustomCallItem, tools: ResponseTools) -> JsonObject:
    arguments = item.arguments if isinstance(item, FunctionCallItem) else arguments_of(item.input)
    function = {"name": tools.model_name(item.name, item.namespace), "arguments": arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _text(content: str | Sequence[Part | ResultPart] | None, path: str, media: Media | None = None) -> str:
    """With `media`, what is no text is told of."""
    if isinstance(content, str):
        return content
    return "".join(_of_part(part, f"{path}[{number}]", media) for number, part in enumerate(content or ()))


def _of_part(part: Part | ResultPart, path: str, media: Media | None) -> str:
    if isinstance(part, ResultPart) and media is not None and part.type in _MEDIA:
        return media.placeholder(_MEDIA[part.type], type_in(part.image_url or part.file_data), path)
    if part.type == "refusal":
        return needed(part.refusal, f"{path}.refusal")
    return needed(part.text, f"{path}.text")
