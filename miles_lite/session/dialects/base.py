"""What every dialect has: a reader of requests, a writer of answers, streams and errors.

Invariant: a dialect holds no state of its own; an `Events` holds that of one stream, whose bytes are sent in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from miles_lite.session.errors import ApiError
from miles_lite.session.exchange import ChatAnswer, ChatRequest, Delta
from miles_lite.tito.messages import Message


@dataclass(frozen=True, slots=True)
class Stamp:
    """An answer's id and the second it was asked for."""

    answer_id: str
    created: int


class Events(Protocol):
    """One stream: `start`, any `delta`s, then `finish` or `failure`, each as the bytes to send."""

    def start(self) -> bytes: ...
    def delta(self, delta: Delta) -> bytes: ...
    def finish(self, answer: ChatAnswer) -> bytes: ...
    def failure(self, error: ApiError) -> bytes: ...


class Dialect(Protocol):
    """`prefix` begins the ids of answers; `keep_alive` may be sent between any two events.

    `held` is the conversation that a request probably repeats; a dialect whose requests hold chat messages as they are
    takes those it finds there without checking them again.
    """

    @property
    def prefix(self) -> str: ...
    @property
    def keep_alive(self) -> bytes: ...
    def parse(self, body: Mapping[str, Any], *, held: Sequence[Message] = ()) -> ChatRequest: ...
    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]: ...
    def events(self, request: ChatRequest, stamp: Stamp) -> Events: ...
    def error(self, error: ApiError) -> dict[str, Any]: ...


def sse(event: Any, *, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(event) + b"\n\n"


def openai_error(error: ApiError) -> dict[str, Any]:
    return error.body()
