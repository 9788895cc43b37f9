"""OpenAI chat completions: requests in, answers and stream chunks out.

Invariant: the fields that are used are checked, and each error names the path of its field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from miles_lite.session.dialects.base import Bodied, Stamp, openai_error, sse
from miles_lite.session.dialects.chat_functions import Spoken, answered, asked, modern, modernised, old
from miles_lite.session.dialects.chat_media import pictured, without_media
from miles_lite.session.dialects.field_tables import CHAT, CHAT_TOOLS
from miles_lite.session.dialects.fields import (
    check_choice,
    check_count,
    check_limits,
    items,
    need,
    obj,
    switch,
    take,
    template_options,
)
from miles_lite.session.dialects.json_reuse import Conversation
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import JSON_OBJECT, ChatAnswer, ChatRequest, Constraint, Delta
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.tito.chat_messages import Message, Tools

MAX_CHOICES = 128
ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatCompletions(Bodied):
    """POST /v1/chat/completions."""

    prefix = "chatcmpl-"
    keep_alive = b": keep-alive\n\n"
    marks = re.compile("/v1/chat/")
    turns = ("/v1/chat/completions",)

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: Mapping[str, Any]) -> ChatRequest:
        """Raises ApiError 400."""
        given = need(body, "messages", "a list")
        if not given:
            raise bad_request("messages must be a list of at least one message", param="messages")
        check_count(given, "messages")
        messages: list[Message] = given
        talk = given if isinstance(given, Conversation) else Conversation(given)
        others = talk.unchecked()
        if any(old(message) or pictured(message) for _, message in others):
            talk = Conversation(without_media(modernised(talk, talk.held), self._media), talk.held)
            others, messages = talk.unchecked(), list(talk)
        check_limits({**body, "messages": [message for _, message in others]})
        unknown = CHAT.check(body)
        for index, message in others:
            _check_message(message, f"messages[{index}]")
        form = "functions" if asked(body) else None
        body = modern(body)
        tools = tools_of(body)
        stream_options = take(body, "stream_options", "an object") or {}
        take(body, "model", "a string")
        if body.get("stop_at") not in (None, JSON_OBJECT):
            raise bad_request(f"stop_at must be {JSON_OBJECT}", param="stop_at")
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=None if body.get("tool_choice") == "none" else tools,
            options=_options(body),
            stream=bool(take(body, "stream", "a boolean")),
            include_usage=bool(take(stream_options, "include_usage", "a boolean", "stream_options.")),
            logprobs=bool(take(body, "logprobs", "a boolean")),
            body=body,
            constraint=_constraint(body, tools),
            n=_choices(body),
            form=form,
            unknown=tuple(unknown),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        message = answer.message if request.form is None else answered(answer.message)
        choice: dict[str, Any] = {"index": request.choice, "message": message}
        choice |= {"finish_reason": _finish_reason(request, answer), "logprobs": _logprobs(answer)}
        return _envelope(answer, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}

    def events(self, request: ChatRequest, stamp: Stamp) -> ChatEvents:
        return ChatEvents(request, stamp)

    def error(self, error: ApiError) -> dict[str, Any]:
        return openai_error(error)


@dataclass(slots=True)
class ChatEvents:
    """The chunks of one stream."""

    request: ChatRequest
    stamp: Stamp
    _calls: int = 0
    _older: Spoken = field(default_factory=Spoken)

    def start(self, prompt_tokens: int) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> bytes:
        made: dict[str, Any] = {}
        if delta.reasoning:
            made["reasoning_content"] = delta.reasoning
        if delta.content:
            made["content"] = delta.content
        if delta.calls and self.request.form is not None:
            made |= self._older.delta(delta.calls)
        elif delta.calls:
            made["tool_calls"] = [{"index": self._calls + n, **call} for n, call in enumerate(delta.calls)]
            self._calls += len(delta.calls)
        return self._chunk(made)

    def finish(self, answer: ChatAnswer) -> bytes:
        """The finish event; for an only answer also usage, when it was asked for, and the end mark."""
        event = self._chunk({}, finish_reason=_finish_reason(self.request, answer), logprobs=_logprobs(answer))
        return event + ending(self.request, [answer]) if self.request.n == 1 else event

    def failure(self, error: ApiError) -> bytes:
        return sse(openai_error(error))

    def _chunk(self, delta: Mapping[str, Any], *, finish_reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": self.request.choice, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return sse(
            {
                "id": self.stamp.answer_id,
                "object": "chat.completion.chunk",
                "created": self.stamp.created,
                "model": self.request.model,
                "choices": [choice],
            }
        )


def ending(request: ChatRequest, answers: Sequence[ChatAnswer]) -> bytes:
    """What ends a stream after all its answers: usage, when it was asked for, and the end mark."""
    usage = _envelope(answers[0], "chat.completion.chunk") | {"choices": [], "usage": _usage(*answers)}
    return (sse(usage) if request.include_usage else b"") + b"data: [DONE]\n\n"


def together(bodies: Sequence[dict[str, Any]], answers: Sequence[ChatAnswer]) -> dict[str, Any]:
    """Several answers to one request as one body."""
    return bodies[0] | {"choices": [choice for body in bodies for choice in body["choices"]], "usage": _usage(*answers)}


def tools_of(body: Mapping[str, Any]) -> Tools | None:
    """The request's tools, checked; they are what the template is given."""
    found = []
    for path, tool in items(body, "tools"):
        CHAT_TOOLS.shows(take(tool, "type", "a string", f"{path}.") or "function", f"{path}.type")
        function = obj(tool.get("function"), f"{path}.function")
        need(function, "name", "a string", f"{path}.function.")
        take(function, "parameters", "an object", f"{path}.function.")
        take(function, "description", "a string", f"{path}.function.")
        found.append(tool)
    return found or None


def schema_of(form: Mapping[str, Any] | None, path: str, *, nested: str | None) -> Mapping[str, Any] | None:
    """The JSON schema that a response format asks for. `nested`: the field that holds name and schema, if one does."""
    kind = (form or {}).get("type", "text")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise bad_request("type must be text, json_object or json_schema", param=f"{path}.type")
    holder, at = (form, path) if nested is None else (need(form, nested, "an object", f"{path}."), f"{path}.{nested}")
    schema: Mapping[str, Any] = need(holder, "schema", "an object", f"{at}.")
    return schema


def _constraint(body: Mapping[str, Any], tools: Tools | None) -> Constraint:
    asked = body.get("tool_choice")
    only = None
    if isinstance(asked, dict):
        if asked.get("type") != "function":
            raise bad_request("tool_choice.type must be function", param="tool_choice.type")
        function = need(asked, "function", "an object", "tool_choice.")
        only = need(function, "name", "a string", "tool_choice.function.")
    elif asked not in (None, "auto", "none", "required"):
        raise bad_request("tool_choice must be auto, none, required or a function", param="tool_choice")
    parallel = take(body, "parallel_tool_calls", "a boolean")
    form = take(body, "response_format", "an object")
    constraint = Constraint(
        force=asked == "required",
        only=only,
        parallel=parallel is not False,
        schema=schema_of(form, "response_format", nested="json_schema"),
    )
    return check_choice(constraint, tools, "tool_choice")


def _check_message(message: Any, path: str) -> None:
    if not isinstance(message, dict):
        raise bad_request("a message must be an object", param=path)
    if message.get("role") not in ROLES:
        raise bad_request(f"role must be one of {', '.join(ROLES)}", param=f"{path}.role")
    content = message.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
            if not isinstance(text, str):
                raise bad_request("only text parts are supported", param=f"{path}.content[{number}]")
    elif content is not None and not isinstance(content, str):
        raise bad_request("content must be a string, a list of text parts or null", param=f"{path}.content")
    for name in ("reasoning_content", "tool_call_id", "name"):
        if not isinstance(message.get(name, ""), str | None):
            raise bad_request(f"{name} must be a string", param=f"{path}.{name}")
    _check_calls(message.get("tool_calls"), f"{path}.tool_calls")


def _check_calls(calls: Any, path: str) -> None:
    if calls is None:
        return
    if not isinstance(calls, list):
        raise bad_request("tool_calls must be a list", param=path)
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request("a tool call needs function.name", param=f"{path}[{index}].function")
        if not isinstance(call.get("id", ""), str | None):
            raise bad_request("id must be a string", param=f"{path}[{index}].id")
        if not isinstance(function.get("arguments", ""), str | dict | None):
            raise bad_request("arguments must be JSON text", param=f"{path}[{index}].function.arguments")


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Thinking as the servers of several model families let clients ask for it."""
    reasoning = take(body, "reasoning", "an object") or {}
    asked_for = [take(body, "enable_thinking", "a boolean"), take(reasoning, "enabled", "a boolean", "reasoning.")]
    thinks = next((flag for flag in asked_for if flag is not None), switch(take(body, "thinking", "an object")))
    effort = take(body, "reasoning_effort", "a string") or take(reasoning, "effort", "a string", "reasoning.")
    return template_options(body, thinks=thinks, effort=effort)


def _finish_reason(request: ChatRequest, answer: ChatAnswer) -> str:
    calls = answer.finish_reason == "tool_calls"
    return "function_call" if calls and request.form is not None else answer.finish_reason


def _choices(body: Mapping[str, Any]) -> int:
    n = take(body, "n", "an integer")
    if n is not None and not 1 <= n <= MAX_CHOICES:
        raise bad_request(f"n must be from 1 to {MAX_CHOICES}", param="n")
    return n or 1


def _envelope(answer: ChatAnswer, kind: str) -> dict[str, Any]:
    return {"id": answer.answer_id, "object": kind, "created": answer.created, "model": answer.model}


def _usage(*answers: ChatAnswer) -> dict[str, Any]:
    """The prompt is counted once, however many answers it has."""
    prompt, completion = answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens},
    }


def _logprobs(answer: ChatAnswer) -> dict[str, Any] | None:
    return None if answer.logprobs is None else {"content": logprob_entries(answer)}


def logprob_entries(answer: ChatAnswer) -> list[dict[str, Any]]:
    return [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in answer.logprobs or ()
    ]
