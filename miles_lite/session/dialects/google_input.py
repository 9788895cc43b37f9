"""The contents of a generateContent request as chat messages.

Invariant: thought parts are reasoning and functionCall parts tool calls, as the answers have them. Names may be spelled
as protocol buffers have them (`function_call`); what a user names is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby, takewhile

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.google_schema import camel_case
from miles_lite.session.dialects.media import Media, not_text
from miles_lite.tito.chat_messages import Message

_USERS = ("args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels")
_TEXTS = {"output", "result", "error"}


def camel(value: Json) -> Json:
    """Names in camel case, as deep as they are Google's."""
    if isinstance(value, list):
        return [camel(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    named = {camel_case(key): key for key in value}
    return {name: value[key] if name in _USERS else camel(value[key]) for name, key in named.items()}


def conversation(body: JsonMapping, media: Media) -> list[Message]:
    """The system instruction, if any, and the contents, of a body that is a `GoogleBody`. Raises ApiError 400."""
    messages: list[Message] = []
    system = body.get("systemInstruction")
    if system is not None:
        parts = [{"text": system}] if isinstance(system, str) else _parts(system)
        if text := "".join(part.get("text") or "" for _, part in _listed(parts, "systemInstruction")):
            messages.append({"role": "system", "content": text})
    contents = [(f"contents[{number}]", content) for number, content in enumerate(body["contents"])]
    for answered, group in groupby(contents, key=_answered):
        if answered:
            messages.append(_model([part for path, content in group for part in _listed(_parts(content), path)]))
            continue
        for path, content in group:
            messages += _user(_listed(_parts(content), path), _calls(messages), media)
    return messages


def _answered(item: tuple[str, JsonMapping]) -> bool:
    """Whether the model said this. Clients that heard a stream send each of its pieces as contents of its own."""
    return item[1].get("role") == "model"


def _parts(content: JsonMapping) -> Json:
    return content.get("parts") or []


def _listed(parts: Json, path: str) -> list[tuple[str, JsonObject]]:
    listed = [parts] if isinstance(parts, dict) else parts
    return [(f"{path}.parts[{number}]", part) for number, part in enumerate(listed)]


def _model(parts: Sequence[tuple[str, JsonObject]]) -> Message:
    text, thoughts, calls = "", "", []
    for path, part in parts:
        if call := part.get("functionCall"):
            function = {"name": call["name"], "arguments": json.dumps(call.get("args") or {}, ensure_ascii=False)}
            calls.append({"id": call.get("id") or "", "type": "function", "function": function})
        elif part.get("thought") is True:
            thoughts += part.get("text") or ""
        else:
            text += _text(part, path)
    made: JsonObject = {"role": "assistant", "content": text}
    if thoughts:
        made["reasoning_content"] = thoughts
    if calls:
        made |= {"content": text or None, "tool_calls": calls}
    return made


def _calls(messages: Sequence[Message]) -> list[JsonMapping]:
    """The calls that functionResponse parts answer, for those that say no id; other contents may have answered some."""
    results = list(takewhile(lambda message: message["role"] == "tool", reversed(messages)))
    answered = {message["tool_call_id"] for message in results}
    before = messages[len(messages) - len(results) - 1 : len(messages) - len(results)]
    return [call for message in before for call in message.get("tool_calls") or () if call["id"] not in answered]


def _user(parts: Sequence[tuple[str, JsonObject]], calls: list[JsonMapping], media: Media) -> list[Message]:
    """Tool results are messages of their own; texts that follow each other are one message.

    An image beside tool results is one of theirs.
    """
    made: list[Message] = []
    answers = any(part.get("functionResponse") for _, part in parts)
    for path, part in parts:
        if given := part.get("functionResponse"):
            made.append(_result(given, path, calls, media))
            continue
        text = media.placeholder(*_media(part), path) if answers and _media(part)[0] else _text(part, path)
        if made and made[-1]["role"] == "user":
            made[-1]["content"].append({"type": "text", "text": text})
        elif text:
            made.append({"role": "user", "content": [{"type": "text", "text": text}]})
    return made


def _result(given: JsonMapping, path: str, calls: list[JsonMapping], media: Media) -> JsonObject:
    at = f"{path}.functionResponse"
    call_id = given.get("id")
    if call_id is None:
        call = next((call for call in calls if call["function"]["name"] == given["name"]), None)
        call_id = "" if call is None else calls.pop(calls.index(call))["id"]
    text = result_text(given.get("response") or {})
    for inner, part in _listed(_parts(given), at):
        text += "\n" + media.placeholder(*_media(part), inner) if _media(part)[0] else _text(part, inner)
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def result_text(response: JsonMapping) -> str:
    """What a function returned: its text, where that is all there is, else JSON."""
    if len(response) == 1 and _TEXTS & response.keys():
        (value,) = response.values()
        if isinstance(value, str):
            return value
    return json.dumps(response, ensure_ascii=False)


def _media(part: JsonMapping) -> tuple[str, object]:
    """(kind, media type) of an image or a file; the kind is empty for anything else."""
    for name in ("inlineData", "fileData"):
        if isinstance(data := part.get(name), dict):
            kind = str(data.get("mimeType") or "file")
            return ("image" if kind.startswith("image/") else "file"), kind
    return "", ""


def _text(part: JsonMapping, path: str) -> str:
    """The text of a part; a part that is a signature alone has none."""
    if "text" in part:
        return part["text"] or ""
    kind = next((name for name in part if name not in ("thought", "thoughtSignature", "partMetadata")), None)
    if kind is not None:
        raise not_text(kind, f"{path}.{kind}")
    return ""
