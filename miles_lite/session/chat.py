"""OpenAI chat completions: requests in, answers and stream chunks out.

Invariant: the fields that are used are checked, each error names the path of its field, and unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miles_lite.session.errors import bad_request
from miles_lite.tito.messages import Message, Tools
from miles_lite.tito.parse import Reply

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request. `options` are the client's chat_template_kwargs; `body` is all it sent.

    `tools` are what the prompt shows, `callable_tools` what a reply may call: none when tool_choice says so.
    """

    messages: list[Message]
    tools: Tools | None
    callable_tools: Tools | None
    options: Mapping[str, Any]
    stream: bool
    include_usage: bool
    logprobs: bool
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A finished turn as clients see it. `logprobs` are (text, natural-log probability) per sampled token."""

    answer_id: str
    created: int
    model: str
    message: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    logprobs: Sequence[tuple[str, float]] | None


def parse_chat(body: Any) -> ChatRequest:
    """Raises ApiError 400."""
    if not isinstance(body, dict):
        raise bad_request("the request body must be a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list of at least one message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    tools = body.get("tools") or None
    _check_tools(tools)
    options = body.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise bad_request("chat_template_kwargs must be an object", param="chat_template_kwargs")
    _refuse_unsupported(body)
    stream_options = body.get("stream_options") or {}
    return ChatRequest(
        messages=messages,
        tools=tools,
        callable_tools=None if body.get("tool_choice") == "none" else tools,
        options=options,
        stream=body.get("stream") is True,
        include_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
        logprobs=body.get("logprobs") is True,
        body=body,
    )


def message_of(reply: Reply, call_ids: Sequence[str]) -> dict[str, Any]:
    """The reply as an assistant message; `call_ids` name the tool calls that the model gave no id."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = [
            {"id": call.id or call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call_id, call in zip(call_ids, reply.tool_calls, strict=True)
        ]
    return message


def completion(answer: ChatAnswer) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "message": answer.message, "finish_reason": answer.finish_reason}
    choice["logprobs"] = _logprobs(answer)
    return _envelope(answer, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}


def delta_of(reply: Reply) -> dict[str, Any]:
    """A piece of content or reasoning as a stream delta."""
    delta: dict[str, Any] = {}
    if reply.content:
        delta["content"] = reply.content
    if reply.reasoning:
        delta["reasoning_content"] = reply.reasoning
    return delta


def chunk(answer_id: str, created: int, model: str, delta: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {
        "id": answer_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": [choice],
    }


def last_chunks(answer: ChatAnswer, *, include_usage: bool) -> list[dict[str, Any]]:
    """Tool calls, if any; the finish event; usage when asked for."""
    chunks = []
    if calls := answer.message.get("tool_calls"):
        numbered = [{"index": index, **call} for index, call in enumerate(calls)]
        chunks.append(chunk(answer.answer_id, answer.created, answer.model, {"tool_calls": numbered}))
    finish = chunk(answer.answer_id, answer.created, answer.model, {})
    finish["choices"][0] |= {"finish_reason": answer.finish_reason, "logprobs": _logprobs(answer)}
    chunks.append(finish)
    if include_usage:
        chunks.append(_envelope(answer, "chat.completion.chunk") | {"choices": [], "usage": _usage(answer)})
    return chunks


def _envelope(answer: ChatAnswer, kind: str) -> dict[str, Any]:
    return {"id": answer.answer_id, "object": kind, "created": answer.created, "model": answer.model}


def _usage(answer: ChatAnswer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
    }


def _logprobs(answer: ChatAnswer) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    return {
        "content": [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in answer.logprobs
        ]
    }


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
        if not isinstance(function.get("arguments", ""), str | dict | None):
            raise bad_request("arguments must be JSON text", param=f"{path}[{index}].function.arguments")


def _check_tools(tools: Any) -> None:
    if tools is not None and not isinstance(tools, list):
        raise bad_request("tools must be a list", param="tools")
    for index, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request("a tool needs function.name", param=f"tools[{index}].function")


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise bad_request("n must be 1: open a session per sample", param="n")
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise bad_request("tool_choice must be auto or none", param="tool_choice")
    form = body.get("response_format")
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise bad_request("response_format must be text", param="response_format")
