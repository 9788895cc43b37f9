"""Google generateContent, streamGenerateContent and countTokens: requests in, answers out.

Invariant: which model is asked, and whether the answer is a stream, is in the address. Contents sent back are those
that were answered: thought parts are reasoning, functionCall parts tool calls, both ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from miles_lite.session.dialects.base import Stamp
from miles_lite.session.dialects.field_tables import GOOGLE, GOOGLE_TOOLS
from miles_lite.session.dialects.fields import (
    check_choice,
    check_count,
    check_limits,
    items,
    need,
    obj,
    take,
    template_options,
)
from miles_lite.session.dialects.google_events import GoogleEvents
from miles_lite.session.dialects.google_input import camel, conversation
from miles_lite.session.dialects.google_schema import json_schema
from miles_lite.session.dialects.google_shape import error_body, parts_of, response
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint, ends_in_reply, whole
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.tito.chat_messages import Tools

ADDRESS = "address"
"""Where `parse` finds what `addressed` read in the request's address; no field of Google's has this name."""

_NAMES = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
}


class Google:
    """POST /v1beta/models/{model}:generateContent and its two siblings."""

    prefix = "gen-"
    keep_alive = b"\n"
    """White space, because some clients of Google's read no comments."""
    marks = re.compile("/v1(?:beta|alpha)/|/models/[^:]+:")
    turns = tuple(
        f"/{{version:v1(?:beta|alpha)?}}/models/{{model:[^:]+}}:{{verb:{verb}}}"
        for verb in ("generateContent", "streamGenerateContent")
    )
    counts = "/{version:v1(?:beta|alpha)?}/models/{model:[^:]+}:countTokens"

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def addressed(self, match: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
        streams = match.get("verb") == "streamGenerateContent"
        return {ADDRESS: {"model": match["model"], "stream": streams, "array": query.get("alt") != "sse"}}

    def parse(self, body: Mapping[str, Any]) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        address = body.get(ADDRESS) or {}
        body = camel({name: value for name, value in body.items() if name != ADDRESS})
        body = take(body, "generateContentRequest", "an object") or body
        unknown = GOOGLE.check(body)
        if not need(body, "contents", "a list"):
            raise bad_request("contents must be a list of at least one content", param="contents")
        check_count(body["contents"], "contents")
        config = take(body, "generationConfig", "an object") or {}
        tools = _tools(body)
        callable_tools, force, only = _choice(body, tools)
        schema = _schema(config)
        thinking = take(config, "thinkingConfig", "an object", "generationConfig.") or {}
        messages = conversation(body, self._media)
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=callable_tools,
            options=_options(thinking),
            stream=bool(address.get("stream")),
            logprobs=bool(take(config, "responseLogprobs", "a boolean", "generationConfig.")),
            body=_sampling(config) | {"model": address.get("model")},
            constraint=check_choice(
                Constraint(force=force, only=only, schema=schema), tools, "toolConfig.functionCallingConfig"
            ),
            prefilled=ends_in_reply(messages),
            form=(bool(take(thinking, "includeThoughts", "a boolean")), bool(address.get("array"))),
            unknown=tuple(unknown),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        thoughts, _ = request.form
        said = whole(answer)
        parts = parts_of(said, thoughts=thoughts, thought=said.reasoning)
        return response(answer.answer_id, answer.model, parts, answer)

    def events(self, request: ChatRequest, stamp: Stamp) -> GoogleEvents:
        thoughts, array = request.form
        return GoogleEvents(request, stamp, thoughts, array)

    def counted(self, tokens: int) -> dict[str, Any]:
        return {"totalTokens": tokens}

    def error(self, error: ApiError) -> dict[str, Any]:
        return error_body(error)


def _tools(body: Mapping[str, Any]) -> Tools | None:
    found = []
    for path, tool in items(body, "tools"):
        for kind, value in tool.items():
            if value is None or not GOOGLE_TOOLS.shows(kind, f"{path}.{kind}"):
                continue
            found += [_function(function, at) for at, function in items(tool, kind, f"{path}.")]
    return found or None


def _function(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    function: dict[str, Any] = {"name": need(given, "name", "a string", f"{path}.")}
    if description := take(given, "description", "a string", f"{path}."):
        function["description"] = description
    schema = take(given, "parametersJsonSchema", "an object", f"{path}.")
    if schema is None:
        schema = json_schema(take(given, "parameters", "an object", f"{path}."))
    function["parameters"] = schema or {}
    return {"type": "function", "function": function}


def _choice(body: Mapping[str, Any], tools: Tools | None) -> tuple[Tools | None, bool, str | None]:
    """(what a reply may call, whether it must, and which one alone)."""
    at = "toolConfig.functionCallingConfig."
    asked = take(take(body, "toolConfig", "an object") or {}, "functionCallingConfig", "an object", "toolConfig.") or {}
    mode = asked.get("mode") or "AUTO"
    if mode == "NONE":
        return None, False, None
    if mode not in ("AUTO", "ANY", "VALIDATED", "MODE_UNSPECIFIED"):
        raise bad_request("mode must be AUTO, ANY, VALIDATED or NONE", param=f"{at}mode")
    names = take(asked, "allowedFunctionNames", "a list", at) or []
    for name in names:
        if name not in [tool["function"]["name"] for tool in tools or ()]:
            raise bad_request(f"there is no function named {name!r}", param=f"{at}allowedFunctionNames")
    allowed = [tool for tool in tools or () if not names or tool["function"]["name"] in names] or None
    return allowed, mode == "ANY", names[0] if mode == "ANY" and len(names) == 1 else None


def _schema(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the answer must be, when JSON is asked for."""
    kind = take(config, "responseMimeType", "a string", "generationConfig.") or "text/plain"
    schema = take(config, "responseJsonSchema", "an object", "generationConfig.")
    if schema is None:
        schema = json_schema(take(config, "responseSchema", "an object", "generationConfig."))
    if kind not in ("text/plain", "application/json"):
        raise bad_request("it must be text/plain or application/json", param="generationConfig.responseMimeType")
    if kind == "application/json":
        return obj(schema or {"type": "object"}, "generationConfig.responseSchema")
    return None


def _options(thinking: Mapping[str, Any]) -> dict[str, Any]:
    level = take(thinking, "thinkingLevel", "a string", "generationConfig.thinkingConfig.")
    budget = take(thinking, "thinkingBudget", "an integer", "generationConfig.thinkingConfig.")
    return template_options({}, thinks=False if budget == 0 else None, effort=level.lower() if level else None)


def _sampling(config: Mapping[str, Any]) -> dict[str, Any]:
    stops = take(config, "stopSequences", "a list", "generationConfig.") or []
    for number, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop:
            raise bad_request("a stop sequence is a text", param=f"generationConfig.stopSequences[{number}]")
    return {name: config[theirs] for theirs, name in _NAMES.items() if config.get(theirs) is not None}
