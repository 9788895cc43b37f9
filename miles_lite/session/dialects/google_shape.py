"""Shapes that Google's answers, streams and errors share.

Invariant: these are functions of their arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.dialects.messages_shape import signature
from miles_lite.session.dialects.request import ChatAnswer, Delta
from miles_lite.session.errors import ApiError

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

Part = JsonObject


def parts_of(delta: Delta, *, thoughts: bool, thought: str) -> list[Part]:
    """The parts of a piece. Clients send the signature of a `thought` back with the calls that came of it, unread."""
    made: list[Part] = []
    if delta.reasoning and thoughts:
        made.append({"text": delta.reasoning, "thought": True})
    if delta.content:
        made.append({"text": delta.content})
    made += [{"functionCall": _call(call)} for call in delta.calls]
    if delta.calls and thought:
        made[-len(delta.calls)]["thoughtSignature"] = signature(thought)
    return made


def response(answer_id: str, model: str, parts: Sequence[Part], answer: ChatAnswer | None = None) -> JsonObject:
    """A GenerateContentResponse, or a piece of one; with the answer it is the last."""
    candidate: JsonObject = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    made: JsonObject = {"candidates": [candidate], "modelVersion": model, "responseId": answer_id}
    if answer is None:
        return made
    candidate["finishReason"] = "MAX_TOKENS" if answer.finish_reason == "length" else "STOP"
    if answer.logprobs is not None:
        chosen = [{"token": text, "logProbability": value} for text, value in answer.logprobs]
        candidate["logprobsResult"] = {"chosenCandidates": chosen}
        if chosen:
            candidate["avgLogprobs"] = sum(value for _, value in answer.logprobs) / len(chosen)
    made["usageMetadata"] = {
        "promptTokenCount": answer.prompt_tokens,
        "cachedContentTokenCount": answer.cached_tokens,
        "candidatesTokenCount": answer.completion_tokens,
        "totalTokenCount": answer.prompt_tokens + answer.completion_tokens,
    }
    return made


def error_body(error: ApiError) -> JsonObject:
    status = _STATUS.get(error.status, "INVALID_ARGUMENT" if error.status < 500 else "INTERNAL")
    named = error.param is None or error.param in error.message
    message = error.message if named else f"{error.param}: {error.message}"
    return {"error": {"code": error.status, "message": message, "status": status}}


def _call(call: JsonMapping) -> Part:
    function = call["function"]
    return {"id": call["id"], "name": function["name"], "args": orjson.loads(function["arguments"])}
