"""OpenAI chat completions: requests in, answers and stream chunks out.

Invariant: the fields that are used are checked, and each error names the path of its field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects import chat_body
from miles_lite.session.dialects.base import Bodied, Route, Stamp, openai_error, sse
from miles_lite.session.dialects.chat_body import ChatBody, StreamOptions, ToolChoice
from miles_lite.session.dialects.chat_functions import (
    FunctionCallStream,
    answered,
    modern,
    modernised,
    old,
    uses_functions,
)
from miles_lite.session.dialects.chat_media import pictured, without_media
from miles_lite.session.dialects.fields import (
    check_choice,
    check_count,
    check_limits,
    schema_of,
    switch,
    template_options,
)
from miles_lite.session.dialects.json_reuse import Conversation
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Constraint, Delta
from miles_lite.session.dialects.typed_json import read
from miles_lite.session.errors import ApiError, bad_request
from miles_lite.tito.chat_messages import Message, Tools


class ChatCompletions(Bodied):
    """POST /v1/chat/completions."""

    prefix = "chatcmpl-"
    keep_alive = b": keep-alive\n\n"
    routes = (
        Route("turn", "/v1/chat/completions", "OpenAI chat completions"),
        Route("models", "/v1/models", "The model"),
        Route("model", "/v1/models/{model:.+}", "The model, under any name", shown="/v1/models/{model}"),
    )
    body, fields, tools = ChatBody, chat_body.FIELDS, chat_body.TOOLS

    def __init__(self, media: Media = Media()) -> None:  # noqa: B008
        self._media = media

    def parse(self, body: JsonMapping) -> ChatRequest:
        """Raises ApiError 400."""
        messages, others = self._messages(body.get("messages"))
        unseen = [message for _, message in others]
        check_limits({**body, "messages": unseen})
        unknown = self.fields.check(body)
        form, body = "functions" if uses_functions(body) else None, modern(body)
        self._check_kinds(body.get("tools"))
        if isinstance(messages, list) and not others:  # sent again as it was: one that was checked stands for all
            unseen = messages[-1:]
        checked = read({**body, "messages": unseen}, ChatBody, whole={**body, "messages": messages})
        for index, message in others:
            _check_parts(message, f"messages[{index}].content")
        tools, stream_options = body.get("tools") or None, checked.stream_options or StreamOptions()
        return ChatRequest(
            messages=messages,
            tools=tools,
            callable_tools=None if checked.tool_choice == "none" else tools,
            options=_options(checked),
            stream=bool(checked.stream),
            include_usage=bool(stream_options.include_usage),
            logprobs=bool(checked.logprobs),
            body=body,
            constraint=_constraint(checked, tools),
            n=checked.n or 1,
            form=form,
            unknown=tuple(unknown),
        )

    def _messages(self, given: Json) -> tuple[Json, list[tuple[int, Message]]]:
        """The messages in the form that the session holds, and which of them were not checked before."""
        if not isinstance(given, list):
            return given, []
        talk = given if isinstance(given, Conversation) else Conversation(given)
        check_count(talk, "messages")
        others = talk.unchecked()
        if not any(old(message) or pictured(message) for _, message in others):
            return given, others
        talk = Conversation(without_media(modernised(talk, talk.held), self._media), talk.held)
        others = talk.unchecked()
        return list(talk), others

    def _check_kinds(self, tools: Json) -> None:
        for index, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict) and isinstance(kind := tool.get("type"), str):
                self.tools.is_served(kind, f"tools[{index}].type")

    def answer(self, request: ChatRequest, answer: ChatAnswer) -> JsonObject:
        message = answer.message if request.form is None else answered(answer.message)
        choice: JsonObject = {"index": request.choice, "message": message}
        choice |= {"finish_reason": _finish_reason(request, answer), "logprobs": _logprobs(answer)}
        return _envelope(answer, "chat.completion") | {"choices": [choice], "usage": _usage(answer)}

    def events(self, request: ChatRequest, stamp: Stamp) -> ChatEvents:
        return ChatEvents(request, stamp)

    def error(self, error: ApiError) -> JsonObject:
        return openai_error(error)


@dataclass(slots=True)
class ChatEvents:
    """The chunks of one stream."""

    request: ChatRequest
    stamp: Stamp
    _calls: int = 0
    _older: FunctionCallStream = field(default_factory=FunctionCallStream)

    def start(self, prompt_tokens: int) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> bytes:
        made: JsonObject = {}
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

    def _chunk(self, delta: JsonMapping, *, finish_reason: str | None = None, logprobs: Json = None) -> bytes:
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


def together(bodies: Sequence[JsonObject], answers: Sequence[ChatAnswer]) -> JsonObject:
    """Several answers to one request as one body."""
    return bodies[0] | {"choices": [choice for body in bodies for choice in body["choices"]], "usage": _usage(*answers)}


def _constraint(body: ChatBody, tools: Tools | None) -> Constraint:
    chosen = body.tool_choice
    constraint = Constraint(
        force=chosen == "required",
        only=chosen.function.name if isinstance(chosen, ToolChoice) else None,
        parallel=body.parallel_tool_calls is not False,
        schema=schema_of(body.response_format, "response_format", nested=True),
    )
    return check_choice(constraint, tools, "tool_choice")


def _check_parts(message: Message, path: str) -> None:
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            raise bad_request("only text parts are supported", param=f"{path}[{number}]")


def _options(body: ChatBody) -> JsonObject:
    """Thinking as the servers of several model families let clients ask for it."""
    reasoning = body.reasoning or chat_body.ChatReasoning()
    thinks = next((flag for flag in (body.enable_thinking, reasoning.enabled) if flag is not None), None)
    if thinks is None:
        thinks = switch(body.thinking.type if body.thinking else None)
    return template_options(body.chat_template_kwargs, thinks=thinks, effort=body.reasoning_effort or reasoning.effort)


def _finish_reason(request: ChatRequest, answer: ChatAnswer) -> str:
    calls = answer.finish_reason == "tool_calls"
    return "function_call" if calls and request.form is not None else answer.finish_reason


def _envelope(answer: ChatAnswer, kind: str) -> JsonObject:
    return {"id": answer.answer_id, "object": kind, "created": answer.created, "model": answer.model}


def _usage(*answers: ChatAnswer) -> JsonObject:
    """The prompt is counted once, however many answers it has."""
    prompt, completion = answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens},
    }


def _logprobs(answer: ChatAnswer) -> JsonObject | None:
    return None if answer.logprobs is None else {"content": logprob_entries(answer)}


def logprob_entries(answer: ChatAnswer) -> list[JsonObject]:
    return [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in answer.logprobs or ()
    ]
