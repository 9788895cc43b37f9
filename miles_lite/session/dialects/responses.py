"""OpenAI Responses: requests in, answers out.

Invariant: `input` is the whole conversation, or what follows the answer that `previous_response_id` names. Reasoning
items are reasoning and function_call items tool calls, both ways, so that a conversation sent back is the one that was
answered. Tools that OpenAI would run itself are not shown to the model.
"""

from __future__ import annotations

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.dialects import responses_body
from miles_lite.session.dialects.base import Bodied, Route, Stamp, openai_error
from miles_lite.session.dialects.chat_body import Sampling
from miles_lite.session.dialects.fields import check_choice, check_limits, schema_of, template_options
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint
from miles_lite.session.dialects.responses_body import ResponsesBody, ResponsesChoice
from miles_lite.session.dialects.responses_events import ResponseEvents
from miles_lite.session.dialects.responses_input import conversation, with_types
from miles_lite.session.dialects.responses_shape import Form, finished, output_items
from miles_lite.session.dialects.responses_tools import ResponseTools, tools_of
from miles_lite.session.dialects.typed_json import read
from miles_lite.session.errors import ApiError


class Responses(Bodied):
    """POST /v1/responses."""

    prefix = "resp_"
    keep_alive = b": keep-alive\n\n"
    routes = (Route("turn", "/v1/responses", "OpenAI Responses"),)
    body, fields, tools = ResponsesBody, responses_body.FIELDS, responses_body.TOOLS

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: JsonMapping) -> ChatRequest:
        """Raises ApiError 400."""
        check_limits(body)
        unknown = self.fields.check(body)
        checked = read(with_types(body), ResponsesBody)
        given = tools_of(checked.tools or ())
        tools = given.functions or None
        return ChatRequest(
            messages=conversation(checked, given, self._media),
            tools=tools,
            callable_tools=None if checked.tool_choice == "none" else tools,
            options=template_options(
                checked.chat_template_kwargs, effort=checked.reasoning.effort if checked.reasoning else None
            ),
            stream=bool(checked.stream),
            logprobs="message.output_text.logprobs" in (checked.include or ()),
            body=_sampling(body, checked.max_output_tokens),
            constraint=_constraint(checked, given),
            form=Form(given, checked.previous_response_id),
            after=checked.previous_response_id,
            instructed=bool(checked.instructions),
            unknown=tuple(unknown),
        )

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> JsonObject:
        stamp = Stamp(answer.answer_id, answer.created)
        return finished(request, stamp, answer, output_items(request, answer))

    def events(self, request: ChatRequest, stamp: Stamp) -> ResponseEvents:
        return ResponseEvents(request, stamp)

    def error(self, error: ApiError) -> JsonObject:
        return openai_error(error)


def _sampling(body: JsonMapping, most: int | None) -> JsonObject:
    names = ("model", "stop", *Sampling.__struct_fields__)
    sampling = {name: body[name] for name in names if body.get(name) is not None}
    return sampling if most is None else sampling | {"max_tokens": most}


def _constraint(body: ResponsesBody, given: ResponseTools) -> Constraint:
    chosen = body.tool_choice
    constraint = Constraint(
        force=chosen == "required",
        only=given.model_name(chosen.name, chosen.namespace) if isinstance(chosen, ResponsesChoice) else None,
        parallel=body.parallel_tool_calls is not False,
        schema=schema_of(body.text.format if body.text else None, "text.format"),
    )
    return check_choice(constraint, given.functions, "tool_choice")
