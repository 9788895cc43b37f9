"""OpenAI Responses: requests in, answers out.

Invariant: nothing is kept for a later request: the whole conversation comes as `input`. Reasoning items are reasoning
and function_call items tool calls, both ways, so that a conversation sent back is the one that was answered.
Tools that OpenAI would run itself are not shown to the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miles_lite.session.dialects.base import Stamp, openai_error
from miles_lite.session.dialects.chat import schema_of
from miles_lite.session.dialects.fields import check_choice, check_limits, items, need, take, unsupported
from miles_lite.session.dialects.responses_events import ResponseEvents
from miles_lite.session.dialects.responses_input import conversation
from miles_lite.session.dialects.responses_shape import finished, output_items
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.session.exchange import ChatAnswer, ChatRequest, Constraint
from miles_lite.tito.messages import Message, Tools

_STORED = ("previous_response_id", "conversation", "prompt")


class Responses:
    """POST /v1/responses."""

    prefix = "resp_"
    keep_alive = b": keep-alive\n\n"

    def parse(self, body: Mapping[str, Any], *, held: Sequence[Message] = ()) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        for name in _STORED:
            if body.get(name) is not None:
                raise unsupported(f"{name} is not kept here: send the whole conversation as input", name)
        if take(body, "background", "a boolean"):
            raise unsupported("background must be false: wait for the answer, or stream it", "background")
        if body.get("top_logprobs") not in (None, 0):
            raise unsupported("top_logprobs must be 0: logprobs are of the sampled tokens", "top_logprobs")
        tools = _tools(body)
        include = take(body, "include", "a list") or []
        return ChatRequest(
            messages=conversation(body),
            tools=tools,
            callable_tools=None if body.get("tool_choice") == "none" else tools,
            options=take(body, "chat_template_kwargs", "an object") or {},
            stream=bool(take(body, "stream", "a boolean")),
            logprobs="message.output_text.logprobs" in include,
            body=_sampling(body),
            constraint=_constraint(body, tools),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        stamp = Stamp(answer.answer_id, answer.created)
        return finished(request, stamp, answer, output_items(answer))

    def events(self, request: ChatRequest, stamp: Stamp) -> ResponseEvents:
        return ResponseEvents(request, stamp)

    def error(self, error: ApiError) -> dict[str, Any]:
        return openai_error(error)


def _tools(body: Mapping[str, Any]) -> Tools | None:
    found = []
    for path, tool in items(body, "tools"):
        if need(tool, "type", "a string", f"{path}.") != "function":
            continue
        function: dict[str, Any] = {"name": need(tool, "name", "a string", f"{path}.")}
        if description := take(tool, "description", "a string", f"{path}."):
            function["description"] = description
        function["parameters"] = take(tool, "parameters", "an object", f"{path}.") or {}
        found.append({"type": "function", "function": function})
    return found or None


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    take(body, "model", "a string")
    names = ("model", "temperature", "top_p", "top_k", "seed", "stop")
    sampling = {name: body[name] for name in names if body.get(name) is not None}
    limit = take(body, "max_output_tokens", "an integer")
    if limit is not None:
        if limit < 1:
            raise bad_request("max_output_tokens must be positive", param="max_output_tokens")
        sampling["max_tokens"] = limit
    return sampling


def _constraint(body: Mapping[str, Any], tools: Tools | None) -> Constraint:
    asked = body.get("tool_choice")
    only = None
    if isinstance(asked, dict):
        if asked.get("type") != "function":
            raise bad_request("tool_choice.type must be function", param="tool_choice.type")
        only = need(asked, "name", "a string", "tool_choice.")
    elif asked not in (None, "auto", "none", "required"):
        raise bad_request("tool_choice must be auto, none, required or a function", param="tool_choice")
    parallel = take(body, "parallel_tool_calls", "a boolean")
    form = take(take(body, "text", "an object") or {}, "format", "an object", "text.")
    constraint = Constraint(
        force=asked == "required",
        only=only,
        parallel=parallel is not False,
        schema=schema_of(form, "text.format", nested=None),
    )
    return check_choice(constraint, tools, "tool_choice")
