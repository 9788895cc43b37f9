"""Anthropic Messages: requests in, answers and token counts out.

Invariant: thinking blocks are reasoning and tool_use blocks are tool calls, both ways, so that a conversation sent back
is the one that was answered. Tools that Anthropic would run itself are not shown to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from miles_lite.session.dialects.base import Bodied, Stamp
from miles_lite.session.dialects.chat import schema_of
from miles_lite.session.dialects.field_tables import MESSAGES, MESSAGES_TOOLS
from miles_lite.session.dialects.fields import (
    check_choice,
    check_count,
    check_limits,
    choice,
    items,
    need,
    obj,
    switch,
    take,
    template_options,
)
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.messages_events import MessageEvents
from miles_lite.session.dialects.messages_shape import envelope, error_body, signature, stop_reason, usage
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint, ends_in_reply, whole
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.tito.chat_messages import Tools

TELEMETRY = "x-anthropic-billing-header:"
"""Claude Code puts this line in front of its system prompt, with a hash that changes at every request."""


class Messages(Bodied):
    """POST /v1/messages, and what /v1/messages/count_tokens reads."""

    prefix = "msg_"
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'
    marks = re.compile("/v1/messages")
    turns = ("/v1/messages",)
    counts = "/v1/messages/count_tokens"

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: Mapping[str, Any]) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        unknown = MESSAGES.check(body)
        listed = need(body, "messages", "a list")
        if not listed:
            raise bad_request("messages must be a list of at least one message", param="messages")
        check_count(listed, "messages")
        messages = _system(body)
        for path, message in items(body, "messages"):
            messages += _chat_messages(message, path, self._media)
        tools = _tools(body)
        asked = take(body, "tool_choice", "an object") or {"type": "auto"}
        kind = choice(asked, "type", ("auto", "any", "tool", "none"), "tool_choice.")
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=None if kind == "none" else tools,
            options=_options(body),
            stream=bool(take(body, "stream", "a boolean")),
            logprobs=False,
            body=_sampling(body),
            constraint=_constraint(body, asked, tools),
            prefilled=ends_in_reply(messages),
            unknown=tuple(unknown),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        said = whole(answer)
        if said.reasoning:
            content.append({"type": "thinking", "thinking": said.reasoning, "signature": signature(said.reasoning)})
        if said.content:
            content.append({"type": "text", "text": said.content, "citations": None})
        content += [_tool_use(call) for call in said.calls]
        return envelope(answer.answer_id, answer.model) | {
            "content": content,
            "stop_reason": stop_reason(answer),
            "stop_sequence": answer.stop_sequence,
            "usage": usage(answer),
        }

    def events(self, request: ChatRequest, stamp: Stamp) -> MessageEvents:
        return MessageEvents(request, stamp)

    def error(self, error: ApiError) -> dict[str, Any]:
        return error_body(error)


def _tool_use(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = orjson.loads(call["function"]["arguments"])
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments}


def _system(body: Mapping[str, Any]) -> list[Any]:
    system = body.get("system")
    if system is None:
        return []
    parts = [system] if isinstance(system, str) else _texts(body, "system", "")
    first, *others = parts or [""]
    if first.startswith(TELEMETRY):
        parts = [rest for rest in [first.partition("\n")[2]] if rest] + others
    return [{"role": "system", "content": _joined(parts)}] if parts else []


def _chat_messages(message: Mapping[str, Any], path: str, media: Media) -> list[dict[str, Any]]:
    role = choice(message, "role", ("user", "assistant", "system"), f"{path}.")
    if isinstance(message.get("content"), str):
        return [{"role": role, "content": message["content"]}]
    need(message, "content", "a list", f"{path}.")
    blocks = items(message, "content", f"{path}.")
    return [_assistant(blocks)] if role == "assistant" else _user(role, blocks, media)


def _assistant(blocks: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    text, thoughts, calls = "", "", []
    for path, block in blocks:
        kind = choice(block, "type", ("text", "thinking", "redacted_thinking", "tool_use"), f"{path}.")
        if kind == "text":
            text += need(block, "text", "a string", f"{path}.")
        elif kind == "thinking":
            thoughts += need(block, "thinking", "a string", f"{path}.")
        elif kind == "tool_use":
            given = need(block, "input", "an object", f"{path}.")
            name = need(block, "name", "a string", f"{path}.")
            function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
            calls.append({"id": need(block, "id", "a string", f"{path}."), "type": "function", "function": function})
    made: dict[str, Any] = {"role": "assistant", "content": text}
    if thoughts:
        made["reasoning_content"] = thoughts
    if calls:
        made |= {"content": text or None, "tool_calls": calls}
    return made


def _user(role: str, blocks: list[tuple[str, dict[str, Any]]], media: Media) -> list[dict[str, Any]]:
    """Tool results are messages of their own; texts that follow each other are one message."""
    made: list[dict[str, Any]] = []
    for path, block in blocks:
        kind = choice(block, "type", ("text", "tool_result"), f"{path}.")
        if kind == "tool_result":
            call_id = need(block, "tool_use_id", "a string", f"{path}.")
            content = block.get("content")
            given = content if isinstance(content, str) else _joined(_returned(block, path, media))
            made.append({"role": "tool", "tool_call_id": call_id, "content": given})
            continue
        text = need(block, "text", "a string", f"{path}.")
        if made and made[-1]["role"] == role:
            made[-1]["content"].append({"type": "text", "text": text})
        else:
            made.append({"role": role, "content": [{"type": "text", "text": text}]})
    return made


def _returned(block: Mapping[str, Any], path: str, media: Media) -> list[str]:
    """The texts of a tool's result; what is no text is told of."""
    found = []
    for at, part in items(block, "content", f"{path}."):
        kind = choice(part, "type", ("text", "image", "document"), f"{at}.")
        if kind == "text":
            found.append(need(part, "text", "a string", f"{at}."))
        else:
            found.append(media.told(kind, obj(part.get("source") or {}, f"{at}.source").get("media_type"), at))
    return found


def _texts(holder: Mapping[str, Any], name: str, at: str) -> list[str]:
    found = []
    for path, block in items(holder, name, at):
        choice(block, "type", ("text",), f"{path}.")
        found.append(need(block, "text", "a string", f"{path}."))
    return found


def _joined(parts: list[str]) -> Any:
    return parts[0] if len(parts) == 1 else [{"type": "text", "text": part} for part in parts]


def _tools(body: Mapping[str, Any]) -> Tools | None:
    found = []
    for path, tool in items(body, "tools"):
        if not MESSAGES_TOOLS.shows(take(tool, "type", "a string", f"{path}.") or "custom", f"{path}.type"):
            continue
        function: dict[str, Any] = {"name": need(tool, "name", "a string", f"{path}.")}
        if description := take(tool, "description", "a string", f"{path}."):
            function["description"] = description
        function["parameters"] = take(tool, "input_schema", "an object", f"{path}.") or {}
        found.append({"type": "function", "function": function})
    return found or None


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    effort = take(take(body, "output_config", "an object") or {}, "effort", "a string", "output_config.")
    return template_options(body, thinks=switch(take(body, "thinking", "an object")), effort=effort)


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    take(body, "model", "a string")
    names = ("model", "max_tokens", "temperature", "top_p", "top_k", "seed")
    stops = take(body, "stop_sequences", "a list") or []
    for number, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop:
            raise bad_request("a stop sequence must be a string", param=f"stop_sequences[{number}]")
    return {name: body[name] for name in names if body.get(name) is not None} | {"stop": stops}


def _constraint(body: Mapping[str, Any], asked: Mapping[str, Any], tools: Tools | None) -> Constraint:
    output = take(body, "output_config", "an object") or {}
    form, path = take(output, "format", "an object", "output_config."), "output_config.format"
    if form is None:
        form, path = take(body, "output_format", "an object"), "output_format"
    constraint = Constraint(
        force=asked["type"] == "any",
        only=need(asked, "name", "a string", "tool_choice.") if asked["type"] == "tool" else None,
        parallel=not take(asked, "disable_parallel_tool_use", "a boolean", "tool_choice."),
        schema=schema_of(form, path, nested=None),
    )
    return check_choice(constraint, tools, "tool_choice")
