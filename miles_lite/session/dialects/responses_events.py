"""The stream of a Responses answer: items that open, grow and close, one at a time, every event numbered.

Invariant: at most one item is open, and the items of the events are those of the last event's response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from miles_lite.process.json_types import Json, JsonMapping
from miles_lite.session.dialects.base import Stamp, sse
from miles_lite.session.dialects.chat import logprob_entries
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta
from miles_lite.session.dialects.responses_shape import (
    Item,
    call_item,
    finished,
    item_id,
    message_item,
    reasoning_item,
    response,
    text_part,
)
from miles_lite.session.errors import ApiError


@dataclass(slots=True)
class ResponseEvents:
    """`_open` is the type of the item that grows, `_text` what it holds so far.

    Calls come with the end of a reply: they wait for the answer, whose logprobs belong to the text before them.
    """

    request: ChatRequest
    stamp: Stamp
    _number: int = 0
    _open: str = ""
    _id: str = ""
    _text: list[str] = field(default_factory=list)
    _calls: list[JsonMapping] = field(default_factory=list)
    _output: list[Item] = field(default_factory=list)

    def start(self, prompt_tokens: int) -> bytes:
        begun = response(self.request, self.stamp, status="in_progress", output=[])
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning:
            events += self._enter("reasoning")
            events += self._part("response.reasoning_text.delta", delta=delta.reasoning)
            self._text.append(delta.reasoning)
        if delta.content:
            events += self._enter("message")
            events += self._part("response.output_text.delta", delta=delta.content, logprobs=[])
            self._text.append(delta.content)
        self._calls += delta.calls
        return events

    def finish(self, answer: ChatAnswer) -> bytes:
        cut = answer.finish_reason == "length"
        ended = "incomplete" if cut else "completed"
        events = self._leave(status="completed" if self._calls else ended, answer=answer)
        for number, call in enumerate(self._calls, 1):
            events += self._call(call, status=ended if number == len(self._calls) else "completed")
        whole = finished(self.request, self.stamp, answer, self._output)
        return events + self._event("response.incomplete" if cut else "response.completed", response=whole)

    def failure(self, error: ApiError) -> bytes:
        failed = response(self.request, self.stamp, status="failed", output=self._output)
        failed["error"] = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response=failed)

    def _enter(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        closed = self._leave()
        self._open, self._id = kind, self._named("rs" if kind == "reasoning" else "msg")
        return (
            closed
            + self._item("added", self._made("in_progress", []))
            + self._part("response.content_part.added", part=self._made_part(""))
        )

    def _leave(self, *, status: str = "completed", answer: ChatAnswer | None = None) -> bytes:
        if not self._open:
            return b""
        text = "".join(self._text)
        logprobs = logprob_entries(answer) if answer is not None and self._open == "message" else []
        part = self._made_part(text, logprobs)
        if self._open == "reasoning":
            events = self._part("response.reasoning_text.done", text=text)
        else:
            events = self._part("response.output_text.done", text=text, logprobs=logprobs)
        events += self._part("response.content_part.done", part=part)
        made = self._made(status, [part])
        events += self._item("done", made)
        self._output.append(made)
        self._open = ""
        self._text.clear()
        return events

    def _call(self, call: JsonMapping, *, status: str) -> bytes:
        called = self.request.form.tools.as_called(call["function"]["name"])
        number, arguments = self._named("fc"), called.argument(call)
        here = {"item_id": number, "output_index": len(self._output)}
        grown = "response.custom_tool_call_input" if called.custom else "response.function_call_arguments"
        whole = {"input": arguments} if called.custom else {"name": called.name, "arguments": arguments}
        events = self._item("added", call_item(number, call, called=called, arguments="", status="in_progress"))
        events += self._event(f"{grown}.delta", **here, delta=arguments)
        events += self._event(f"{grown}.done", **here, **whole)
        made = call_item(number, call, called=called, arguments=arguments, status=status)
        events += self._item("done", made)
        self._output.append(made)
        return events

    def _made(self, status: str, parts: list[Item]) -> Item:
        if self._open == "message":
            return message_item(self._id, parts, status)
        return (
            reasoning_item(self._id, parts[0]["text"], status)
            if parts
            else {
                **reasoning_item(self._id, "", status),
                "content": [],
            }
        )

    def _made_part(self, text: str, logprobs: Json = ()) -> Item:
        return text_part(text, logprobs) if self._open == "message" else {"type": "reasoning_text", "text": text}

    def _named(self, prefix: str) -> str:
        return item_id(prefix, self.stamp.answer_id, len(self._output))

    def _item(self, moment: str, item: Item) -> bytes:
        return self._event(f"response.output_item.{moment}", output_index=len(self._output), item=item)

    def _part(self, name: str, /, **fields: Json) -> bytes:
        here = {"item_id": self._id, "output_index": len(self._output), "content_index": 0}
        return self._event(name, **here, **fields)

    def _event(self, name: str, /, **fields: Json) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return sse(event, name=name)
