"""Anthropic Messages: requests in, answers and token counts out.

Invariant: thinking blocks are reasoning and tool_use blocks are tool calls, both ways, so that a conversation sent back
is the one that was answered. Tools that Anthropic would run itself are not shown to the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import orjson

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects import messages_body
from miles_lite.session.dialects.base import Bodied, Route, Stamp
from miles_lite.session.dialects.fields import (
    check_choice,
    check_count,
    check_limits,
    needed,
    schema_of,
    switch,
    template_options,
)
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.messages_body import (
    AssistantMessage,
    Document,
    Image,
    MessagesBody,
    MessagesChoice,
    RedactedThought,
    SystemMessage,
    TextBlock,
    Thought,
    ToolResult,
    ToolUse,
    UserMessage,
)
from miles_lite.session.dialects.messages_events import MessageEvents
from miles_lite.session.dialects.messages_shape import envelope, error_body, signature, stop_reason, usage
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint, ends_in_reply, whole
from miles_lite.session.dialects.typed_json import read
from miles_lite.session.errors import ApiError
from miles_lite.tito.chat_messages import Message, Tools

TELEMETRY = "x-anthropic-billing-header:"
"""Claude Code puts this line in front of its system prompt, with a hash that changes at every request."""


class Messages(Bodied):
    """POST /v1/messages, and what /v1/messages/count_tokens reads."""

    prefix = "msg_"
    keep_alive = b'event: ping\ndata: {"type": "ping"}\n\n'
    routes = (
        Route("turn", "/v1/messages", "Anthropic Messages"),
        Route("count", "/v1/messages/count_tokens", "Tokens of a prompt"),
    )
    body, fields, tools = MessagesBody, messages_body.FIELDS, messages_body.TOOLS

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: JsonMapping) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        unknown = self.fields.check(body)
        checked = read(body, MessagesBody)
        check_count(checked.messages, "messages")
        messages = _system(checked)
        for number, message in enumerate(checked.messages):
            messages += _chat_messages(message, f"messages[{number}]", self._media)
        tools = self._tools(checked)
        asked = checked.tool_choice or MessagesChoice()
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=None if asked.type == "none" else tools,
            options=template_options(
                checked.chat_template_kwargs,
                thinks=switch(checked.thinking.type if checked.thinking else None),
                effort=checked.output_config.effort if checked.output_config else None,
            ),
            stream=bool(checked.stream),
            logprobs=False,
            body=_sampling(body),
            constraint=_constraint(checked, asked, tools),
            prefilled=ends_in_reply(messages),
            unknown=tuple(unknown),
        )

    def _tools(self, body: MessagesBody) -> Tools | None:
        found = []
        for number, tool in enumerate(body.tools or ()):
            if self.tools.is_served(tool.type or "custom", f"tools[{number}].type"):
                function: JsonObject = {"name": needed(tool.name, f"tools[{number}].name")}
                function |= {"description": tool.description} if tool.description else {}
                function["parameters"] = tool.input_schema or {}
                found.append({"type": "function", "function": function})
        return found or None

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> JsonObject:
        content: list[JsonObject] = []
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

    def error(self, error: ApiError) -> JsonObject:
        return error_body(error)


def _tool_use(call: JsonMapping) -> JsonObject:
    arguments = orjson.loads(call["function"]["arguments"])
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments}


def _system(body: MessagesBody) -> list[Message]:
    if body.system is None:
        return []
    parts = [body.system] if isinstance(body.system, str) else [block.text for block in body.system]
    first, *others = parts or [""]
    if first.startswith(TELEMETRY):
        parts = [rest for rest in [first.partition("\n")[2]] if rest] + others
    return [{"role": "system", "content": _joined(parts)}] if parts else []


def _chat_messages(
    message: UserMessage | SystemMessage | AssistantMessage, path: str, media: Media
) -> Sequence[Message]:
    if isinstance(message, AssistantMessage):
        said = [TextBlock(text=message.content)] if isinstance(message.content, str) else message.content
        return [_assistant(said)]
    role = "user" if isinstance(message, UserMessage) else "system"
    if isinstance(message.content, str):
        return [{"role": role, "content": message.content}]
    return _user(role, message.content, path, media)


def _assistant(blocks: Sequence[TextBlock | Thought | RedactedThought | ToolUse]) -> Message:
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thoughts = "".join(block.thinking for block in blocks if isinstance(block, Thought))
    calls = [_call(block) for block in blocks if isinstance(block, ToolUse)]
    made: JsonObject = {"role": "assistant", "content": text}
    if thoughts:
        made["reasoning_content"] = thoughts
    if calls:
        made |= {"content": text or None, "tool_calls": calls}
    return made


def _call(block: ToolUse) -> JsonObject:
    function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
    return {"id": block.id, "type": "function", "function": function}


def _user(role: str, blocks: Sequence[TextBlock | ToolResult], path: str, media: Media) -> Sequence[Message]:
    """Tool results are messages of their own; texts that follow each other are one message."""
    made: list[JsonObject] = []
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResult):
            given = block.content
            if not isinstance(given, str):
                given = _joined(
                    [
                        _text_of(part, f"{path}.content[{number}].content[{n}]", media)
                        for n, part in enumerate(given or ())
                    ]
                )
            made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": given})
        elif made and made[-1]["role"] == role:
            made[-1]["content"].append({"type": "text", "text": block.text})
        else:
            made.append({"role": role, "content": [{"type": "text", "text": block.text}]})
    return made


def _returned(result: ToolResult, path: str, media: Media) -> Json:
    if isinstance(result.content, str):
        return result.content
    return _joined([_text_of(part, f"{path}[{number}]", media) for number, part in enumerate(result.content or ())])


def _text_of(part: TextBlock | Image | Document, path: str, media: Media) -> str:
    """What is no text is told of."""
    if isinstance(part, TextBlock):
        return part.text
    kind = "image" if isinstance(part, Image) else "document"
    return media.placeholder(kind, part.source and part.source.media_type, path)


def _joined(parts: list[str]) -> Json:
    return parts[0] if len(parts) == 1 else [{"type": "text", "text": part} for part in parts]


def _sampling(body: JsonMapping) -> JsonObject:
    names = ("model", "max_tokens", "temperature", "top_p", "top_k", "seed")
    return {name: body[name] for name in names if body.get(name) is not None} | {
        "stop": body.get("stop_sequences") or []
    }


def _constraint(body: MessagesBody, asked: MessagesChoice, tools: Tools | None) -> Constraint:
    form, path = body.output_config.format if body.output_config else None, "output_config.format"
    if form is None:
        form, path = body.output_format, "output_format"
    constraint = Constraint(
        force=asked.type == "any",
        only=needed(asked.name, "tool_choice.name") if asked.type == "tool" else None,
        parallel=not asked.disable_parallel_tool_use,
        schema=schema_of(form, path),
    )
    return check_choice(constraint, tools, "tool_choice")
