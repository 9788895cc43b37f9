"""OpenAI Responses: requests in, answers out.

Invariant: `input` is the whole conversation, or what follows the answer that `previous_response_id` names. Reasoning
items are reasoning and function_call items tool calls, both ways, so that a conversation sent back is the one that was
answered. Tools that OpenAI would run itself are not shown to the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from miles_lite.session.dialects.base import Bodied, Stamp, openai_error
from miles_lite.session.dialects.chat import schema_of
from miles_lite.session.dialects.field_tables import RESPONSES, SAMPLING
from miles_lite.session.dialects.fields import check_choice, check_limits, choice, need, take, template_options
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint
from miles_lite.session.dialects.responses_events import ResponseEvents
from miles_lite.session.dialects.responses_input import conversation
from miles_lite.session.dialects.responses_shape import Form, finished, output_items
from miles_lite.session.dialects.responses_tools import ResponseTools, tools_of
from miles_lite.session.errors import ApiError, bad_request


class Responses(Bodied):
    """POST /v1/responses."""

    prefix = "resp_"
    keep_alive = b": keep-alive\n\n"
    marks = re.compile("/v1/responses")
    turns = ("/v1/responses",)

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: Mapping[str, Any]) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        unknown = RESPONSES.check(body)
        given = tools_of(body)
        tools = given.functions or None
        previous = take(body, "previous_response_id", "a string")
        include = take(body, "include", "a list") or []
        return ChatRequest(
            messages=conversation(body, given, self._media),
            tools=tools,
            callable_tools=None if body.get("tool_choice") == "none" else tools,
            options=template_options(body, effort=_effort(body)),
            stream=bool(take(body, "stream", "a boolean")),
            logprobs="message.output_text.logprobs" in include,
            body=_sampling(body),
            constraint=_constraint(body, given),
            form=Form(given, previous),
            after=previous,
            instructed=bool(body.get("instructions")),
            unknown=tuple(unknown),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]:
        stamp = Stamp(answer.answer_id, answer.created)
        return finished(request, stamp, answer, output_items(request, answer))

    def events(self, request: ChatRequest, stamp: Stamp) -> ResponseEvents:
        return ResponseEvents(request, stamp)

    def error(self, error: ApiError) -> dict[str, Any]:
        return openai_error(error)


def _effort(body: Mapping[str, Any]) -> Any:
    return take(take(body, "reasoning", "an object") or {}, "effort", "a string", "reasoning.")


def _sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    take(body, "model", "a string")
    names = ("model", "stop", *SAMPLING)
    sampling = {name: body[name] for name in names if body.get(name) is not None}
    limit = take(body, "max_output_tokens", "an integer")
    if limit is not None:
        if limit < 1:
            raise bad_request("max_output_tokens must be positive", param="max_output_tokens")
        sampling["max_tokens"] = limit
    return sampling


def _constraint(body: Mapping[str, Any], given: ResponseTools) -> Constraint:
    asked = body.get("tool_choice")
    only = None
    if isinstance(asked, dict):
        choice(asked, "type", ("function", "custom"), "tool_choice.")
        space = take(asked, "namespace", "a string", "tool_choice.")
        only = given.shown(need(asked, "name", "a string", "tool_choice."), space)
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
    return check_choice(constraint, given.functions, "tool_choice")
