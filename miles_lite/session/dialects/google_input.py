"""The contents of a generateContent request as chat messages.

Invariant: thought parts are reasoning and functionCall parts tool calls, as the answers have them. Names may be spelled
as protocol buffers have them (`function_call`); what a user names is left as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any

from miles_lite.session.dialects.fields import items, need, obj, take
from miles_lite.session.dialects.google_schema import camel_case
from miles_lite.session.dialects.media import Media, not_text
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Message

_USERS = ("args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels")
_TEXTS = {"output", "result", "error"}


def camel(value: Any) -> Any:
    """Names in camel case, as deep as they are Google's."""
    if isinstance(value, list):
        return [camel(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    named = {camel_case(key): key for key in value}
    return {name: value[key] if name in _USERS else camel(value[key]) for name, key in named.items()}


def conversation(body: Mapping[str, Any], media: Media) -> list[Message]:
    """The system instruction, if any, and the contents. Raises ApiError 400."""
    messages: list[Message] = []
    system = body.get("systemInstruction")
    if system is not None:
        parts = [{"text": system}] if isinstance(system, str) else _parts(obj(system, "systemInstruction"))
        texts = [need(part, "text", "a string", f"{path}.") for path, part in _listed(parts, "systemInstruction")]
        if text := "".join(texts):
            messages.append({"role": "system", "content": text})
    for answered, group in groupby(items(body, "contents"), key=_answered):
        if answered:
            messages.append(_model([part for path, content in group for part in _listed(_parts(content), path)]))
            continue
        for path, content in group:
            messages += _user(_listed(_parts(content), path), _calls(messages), media)
    return messages


def _answered(item: tuple[str, Mapping[str, Any]]) -> bool:
    """Whether the model said this. Clients that heard a stream send each of its pieces as contents of its own."""
    path, content = item
    role = content.get("role") or "user"
    if role not in ("user", "model", "function"):
        raise bad_request("role must be user or model", param=f"{path}.role")
    return bool(role == "model")


def _parts(content: Mapping[str, Any]) -> Any:
    return content.get("parts") or []


def _listed(parts: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    return items({"parts": [parts] if isinstance(parts, dict) else parts}, "parts", f"{path}.")


def _model(parts: Sequence[tuple[str, dict[str, Any]]]) -> Message:
    text, thoughts, calls = "", "", []
    for path, part in parts:
        if "functionCall" in part:
            call, at = obj(part["functionCall"], f"{path}.functionCall"), f"{path}.functionCall."
            given = take(call, "args", "an object", at) or {}
            function = {"name": need(call, "name", "a string", at), "arguments": json.dumps(given, ensure_ascii=False)}
            calls.append({"id": take(call, "id", "a string", at) or "", "type": "function", "function": function})
        elif part.get("thought") is True:
            thoughts += take(part, "text", "a string", f"{path}.") or ""
        else:
            text += _text(part, path)
    made: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts:
        made["reasoning_content"] = thoughts
    if calls:
        made |= {"content": text or None, "tool_calls": calls}
    return made


def _calls(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """The calls that functionResponse parts answer, for those that say no id; other contents may have answered some."""
    results = list(takewhile(lambda message: message["role"] == "tool", reversed(messages)))
    answered = {message["tool_call_id"] for message in results}
    before = messages[len(messages) - len(results) - 1 : len(messages) - len(results)]
    return [call for message in before for call in message.get("tool_calls") or () if call["id"] not in answered]


def _user(parts: Sequence[tuple[str, dict[str, Any]]], calls: list[Mapping[str, Any]], media: Media) -> list[Message]:
    """Tool results are messages of their own; texts that follow each other are one message.

    An image beside tool results is one of theirs.
    """
    made: list[Message] = []
    answers = any("functionResponse" in part for _, part in parts)
    for path, part in parts:
        if "functionResponse" in part:
            made.append(_result(obj(part["functionResponse"], f"{path}.functionResponse"), path, calls, media))
            continue
        text = media.told(*_media(part), path) if answers and _media(part)[0] else _text(part, path)
        if made and made[-1]["role"] == "user":
            made[-1]["content"].append({"type": "text", "text": text})
        elif text:
            made.append({"role": "user", "content": [{"type": "text", "text": text}]})
    return made


def _result(given: Mapping[str, Any], path: str, calls: list[Mapping[str, Any]], media: Media) -> dict[str, Any]:
    at = f"{path}.functionResponse"
    name, call_id = need(given, "name", "a string", f"{at}."), take(given, "id", "a string", f"{at}.")
    if call_id is None:
        call = next((call for call in calls if call["function"]["name"] == name), None)
        call_id = "" if call is None else calls.pop(calls.index(call))["id"]
    text = said(take(given, "response", "an object", f"{at}.") or {})
    for inner, part in _listed(_parts(given), at):
        text += "\n" + media.told(*_media(part), inner) if _media(part)[0] else _text(part, inner)
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def said(response: Mapping[str, Any]) -> str:
    """What a function returned: its text, where that is all there is, else JSON."""
    if len(response) == 1 and _TEXTS & response.keys():
        (value,) = response.values()
        if isinstance(value, str):
            return value
    return json.dumps(response, ensure_ascii=False)


def _media(part: Mapping[str, Any]) -> tuple[str, object]:
    """(kind, media type) of an image or a file; the kind is empty for anything else."""
    for name in ("inlineData", "fileData"):
        if isinstance(data := part.get(name), dict):
            kind = str(data.get("mimeType") or "file")
            return ("image" if kind.startswith("image/") else "file"), kind
    return "", ""


def _text(part: Mapping[str, Any], path: str) -> str:
    """The text of a part; a part that is a signature alone has none."""
    if "text" in part:
        return str(take(part, "text", "a string", f"{path}.") or "")
    kind = next((name for name in part if name not in ("thought", "thoughtSignature", "partMetadata")), None)
    if kind is not None:
        raise not_text(kind, f"{path}.{kind}")
    return ""
