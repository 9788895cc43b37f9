"""Google generateContent, streamGenerateContent and countTokens: requests in, answers out.

Invariant: which model is asked, and whether the answer is a stream, is in the address. Contents sent back are those
that were answered: thought parts are reasoning, functionCall parts tool calls, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.dialects import google_body
from miles_lite.session.dialects.base import Route, Stamp
from miles_lite.session.dialects.fields import check_choice, check_count, check_limits, template_options
from miles_lite.session.dialects.google_body import (
    CallingConfig,
    Declaration,
    GenerationConfig,
    GoogleBody,
    ThinkingConfig,
    ToolConfig,
)
from miles_lite.session.dialects.google_events import GoogleEvents
from miles_lite.session.dialects.google_input import camel, conversation
from miles_lite.session.dialects.google_schema import json_schema
from miles_lite.session.dialects.google_shape import error_body, parts_of, response
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint, ends_in_reply, whole
from miles_lite.session.dialects.typed_json import read
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


def _route(does: Literal["turn", "count"], verb: str, about: str, **query: Sequence[str]) -> Route:
    path = f"/{{version:v1(?:beta|alpha)?}}/models/{{model:[^:]+}}:{{verb:{verb}}}"
    return Route(does, path, about, shown=f"/v1beta/models/{{model}}:{verb}", query=query)


class Google:
    """POST /v1beta/models/{model}:generateContent and its two siblings."""

    prefix = "gen-"
    keep_alive = b"\n"
    """White space, because some clients of Google's read no comments."""
    routes = (
        _route("turn", "generateContent", "Google generateContent"),
        _route("turn", "streamGenerateContent", "Google streamGenerateContent", alt=("sse", "json")),
        _route("count", "countTokens", "Tokens of a prompt"),
        Route("models", "/v1beta/models", "The model, for clients of Google"),
        Route(
            "model",
            "/v1beta/models/{model:.+}",
            "The model, under any name, for clients of Google",
            shown="/v1beta/models/{model}",
        ),
    )
    body, fields, tools = GoogleBody, google_body.FIELDS, google_body.TOOLS

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def addressed(self, match: Mapping[str, str], query: str) -> JsonObject:
        streams = match.get("verb") == "streamGenerateContent"
        return {
            ADDRESS: {"model": match["model"], "stream": streams, "array": dict(parse_qsl(query)).get("alt") != "sse"}
        }

    def parse(self, body: JsonMapping) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        address = body.get(ADDRESS) or {}
        body = camel({name: value for name, value in body.items() if name != ADDRESS})
        inner = body.get("generateContentRequest")
        body = inner if isinstance(inner, dict) and inner else body
        unknown = self.fields.check(body)
        checked = read(body, GoogleBody)
        check_count(body["contents"], "contents")
        config = checked.generation_config or GenerationConfig()
        thinking = config.thinking_config or ThinkingConfig()
        tools = self._tools(body, checked)
        callable_tools, force, only = _choice(checked, tools)
        messages = conversation(body, self._media)
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=callable_tools,
            options=_options(thinking),
            stream=bool(address.get("stream")),
            logprobs=bool(config.response_logprobs),
            body=_sampling(body.get("generationConfig") or {}) | {"model": address.get("model")},
            constraint=check_choice(
                Constraint(force=force, only=only, schema=_schema(config)), tools, "toolConfig.functionCallingConfig"
            ),
            prefilled=ends_in_reply(messages),
            form=(bool(thinking.include_thoughts), bool(address.get("array"))),
            unknown=tuple(unknown),
        )

    def _tools(self, body: JsonMapping, checked: GoogleBody) -> Tools | None:
        found = []
        for number, (given, tool) in enumerate(zip(body.get("tools") or (), checked.tools or (), strict=True)):
            shown = [self.tools.is_served(kind, f"tools[{number}].{kind}") for kind in given if given[kind] is not None]
            found += [_function(each) for each in tool.function_declarations or ()] if any(shown) else []
        return found or None

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> JsonObject:
        thoughts, _ = request.form
        said = whole(answer)
        parts = parts_of(said, thoughts=thoughts, thought=said.reasoning)
        return response(answer.answer_id, answer.model, parts, answer)

    def events(self, request: ChatRequest, stamp: Stamp) -> GoogleEvents:
        thoughts, array = request.form
        return GoogleEvents(request, stamp, thoughts, array)

    def counted(self, tokens: int) -> JsonObject:
        return {"totalTokens": tokens}

    def error(self, error: ApiError) -> JsonObject:
        return error_body(error)


def _function(given: Declaration) -> JsonObject:
    function: JsonObject = {"name": given.name}
    function |= {"description": given.description} if given.description else {}
    schema = json_schema(given.parameters) if given.parameters_json_schema is None else given.parameters_json_schema
    return {"type": "function", "function": function | {"parameters": schema or {}}}


def _choice(body: GoogleBody, tools: Tools | None) -> tuple[Tools | None, bool, str | None]:
    """(what a reply may call, whether it must, and which one alone)."""
    config = body.tool_config or ToolConfig()
    asked = config.function_calling_config or CallingConfig()
    if asked.mode == "NONE":
        return None, False, None
    names, forced = asked.allowed_function_names or [], asked.mode == "ANY"
    known = {tool["function"]["name"]: tool for tool in tools or ()}
    if unknown := [name for name in names if name not in known]:
        at = "toolConfig.functionCallingConfig.allowedFunctionNames"
        raise bad_request(f"there is no function named {unknown[0]!r}", param=at)
    allowed = [tool for name, tool in known.items() if name in names] if names else tools
    return allowed, forced, names[0] if forced and len(names) == 1 else None


def _schema(config: GenerationConfig) -> JsonMapping | None:
    """What the answer must be, when JSON is asked for."""
    if config.response_mime_type != "application/json":
        return None
    schema = config.response_json_schema
    return (json_schema(config.response_schema) if schema is None else schema) or {"type": "object"}


def _options(thinking: ThinkingConfig) -> JsonObject:
    level = thinking.thinking_level
    return template_options(
        None, thinks=False if thinking.thinking_budget == 0 else None, effort=level.lower() if level else None
    )


def _sampling(config: JsonMapping) -> JsonObject:
    return {name: config[theirs] for theirs, name in _NAMES.items() if config.get(theirs) is not None}
