"""Anthropic's stream of a message: blocks that open, grow and close, one at a time.

Invariant: at most one block is open, and the blocks that the events describe are those of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects.base import Stamp, sse
from miles_lite.session.dialects.messages_shape import envelope, error_body, signature, stop_reason, usage
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta
from miles_lite.session.errors import ApiError


@dataclass(slots=True)
class MessageEvents:
    """`_open` is the type of the block that grows."""

    request: ChatRequest
    stamp: Stamp
    _index: int = -1
    _open: str = ""
    _thought: str = ""

    def start(self, prompt_tokens: int) -> bytes:
        """How many of the prompt's tokens were cached is told at the end, with the tokens of the reply."""
        empty: JsonObject = {"content": [], "stop_reason": None, "stop_sequence": None}
        counts = {"input_tokens": prompt_tokens, "output_tokens": 0}
        message = envelope(self.stamp.answer_id, self.request.model) | empty | {"usage": counts}
        return _event("message_start", message=message)

    def delta(self, delta: Delta) -> bytes:
        events = b""
        if delta.reasoning:
            self._thought += delta.reasoning
            events += self._enter("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events += self._grow({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            events += self._enter("text", {"type": "text", "text": "", "citations": None})
            events += self._grow({"type": "text_delta", "text": delta.content})
        for call in delta.calls:
            function = call["function"]
            block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            events += self._leave() + self._enter("tool_use", block)
            events += self._grow({"type": "input_json_delta", "partial_json": function["arguments"]})
        return events

    def finish(self, answer: ChatAnswer) -> bytes:
        ended = {"stop_reason": stop_reason(answer), "stop_sequence": answer.stop_sequence}
        return self._leave() + _event("message_delta", delta=ended, usage=usage(answer)) + _event("message_stop")

    def failure(self, error: ApiError) -> bytes:
        return sse(error_body(error), name="error")

    def _enter(self, kind: str, block: JsonObject) -> bytes:
        if self._open == kind:
            return b""
        closed = self._leave()
        self._open, self._index = kind, self._index + 1
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _grow(self, delta: JsonObject) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _leave(self) -> bytes:
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._grow({"type": "signature_delta", "signature": signature(self._thought)})
        self._open = ""
        return signed + _event("content_block_stop", index=self._index)


def _event(name: str, /, **fields: Json) -> bytes:
    return sse({"type": name, **fields}, name=name)
