"""Shapes that Responses answers and streams share.

Invariant: the items of a stream and of a plain answer are made here, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.base import Stamp
from miles_lite.session.dialects.chat import logprob_entries
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, whole
from miles_lite.session.dialects.responses_tools import Called, ResponseTools

Item = JsonObject


@dataclass(frozen=True, slots=True)
class Form:
    """What a request says about how its answer is written: its tools, and the answer that it follows."""

    tools: ResponseTools
    previous: str | None = None


def item_id(prefix: str, answer_id: str, index: int) -> str:
    """The id of an answer's item; the same each time the answer is told."""
    return f"{prefix}_{answer_id.rpartition('_')[2]}{index:04x}"


def reasoning_item(number: str, text: str, status: str = "completed") -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": number, "type": "reasoning", "summary": [], "content": content, "status": status}


def text_part(text: str, logprobs: Sequence[Json] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def message_item(number: str, parts: list[Item], status: str = "completed") -> Item:
    return {"id": number, "type": "message", "role": "assistant", "content": parts, "status": status}


def call_item(number: str, call: JsonMapping, *, called: Called, arguments: str, status: str = "completed") -> Item:
    return {"id": number} | called.item(call, arguments) | {"status": status}


def output_items(request: ChatRequest, answer: ChatAnswer) -> list[Item]:
    """Reasoning, text and calls; the logprobs of a turn go with its text."""
    made: list[Item] = []
    said = whole(answer)

    def named(prefix: str) -> str:
        return item_id(prefix, answer.answer_id, len(made))

    if said.reasoning:
        made.append(reasoning_item(named("rs"), said.reasoning))
    if said.content:
        made.append(message_item(named("msg"), [text_part(said.content, logprob_entries(answer))]))
    for call in said.calls:
        called = request.form.tools.as_called(call["function"]["name"])
        made.append(call_item(named("fc"), call, called=called, arguments=called.argument(call)))
    return made


def response(request: ChatRequest, stamp: Stamp, *, status: str, output: list[Item]) -> JsonObject:
    """The response object. Of the request it repeats what clients need to read it, not the conversation."""
    only = request.constraint.only
    forced: Json = "required" if request.constraint.force else "auto" if request.callable_tools else "none"
    return {
        "id": stamp.answer_id,
        "object": "response",
        "created_at": stamp.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": request.body.get("max_tokens"),
        "metadata": {},
        "model": request.model,
        "output": output,
        "parallel_tool_calls": request.constraint.parallel,
        "previous_response_id": request.form.previous,
        "store": False,
        "temperature": request.body.get("temperature"),
        "top_p": request.body.get("top_p"),
        "tool_choice": forced if only is None else {"type": "function", "name": only},
        "tools": [],
        "truncation": "disabled",
        "usage": None,
    }


def finished(request: ChatRequest, stamp: Stamp, answer: ChatAnswer, output: list[Item]) -> JsonObject:
    """The response object of an answered request; a reply cut by its length is `incomplete`."""
    cut = answer.finish_reason == "length"
    if cut and output:
        output[-1]["status"] = "incomplete"
    made = response(request, stamp, status="incomplete" if cut else "completed", output=output)
    made["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
    made["usage"] = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    return made
