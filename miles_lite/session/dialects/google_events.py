"""Google's stream of an answer: pieces of it, as server-sent events or as the elements of one JSON array.

Invariant: the parts of the pieces, texts of one kind joined, are those of the answer; the last piece ends it.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from miles_lite.process.json_types import JsonObject
from miles_lite.session.dialects.base import Stamp, sse
from miles_lite.session.dialects.google_shape import error_body, parts_of, response
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta
from miles_lite.session.errors import ApiError


@dataclass(slots=True)
class GoogleEvents:
    """`array`: the pieces are those of a JSON array."""

    request: ChatRequest
    stamp: Stamp
    thoughts: bool
    array: bool
    _thought: str = ""
    _sent: int = 0

    def start(self, prompt_tokens: int) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        self._thought += delta.reasoning
        parts = parts_of(delta, thoughts=self.thoughts, thought=self._thought)
        if delta.calls:
            self._thought = ""
        return self._piece(response(self.stamp.answer_id, self.request.model, parts)) if parts else b""

    def finish(self, answer: ChatAnswer) -> bytes:
        ended = self._piece(response(self.stamp.answer_id, self.request.model, [{"text": ""}], answer))
        return ended + (b"]" if self.array else b"")

    def failure(self, error: ApiError) -> bytes:
        return self._piece(error_body(error)) + (b"]" if self.array else b"")

    def _piece(self, piece: JsonObject) -> bytes:
        self._sent += 1
        if not self.array:
            return sse(piece)
        return (b"[" if self._sent == 1 else b",\n") + orjson.dumps(piece)
