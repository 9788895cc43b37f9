"""What every dialect has: a reader of requests, a writer of answers, streams and errors.

Invariant: a dialect holds no state of its own; an `Events` holds that of one stream, whose bytes are sent in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta
from miles_lite.session.errors import ApiError


@dataclass(frozen=True, slots=True)
class Stamp:
    """An answer's id and the second it was asked for."""

    answer_id: str
    created: int


class Events(Protocol):
    """One stream: `start`, any `delta`s, then `finish` or `failure`, each as the bytes to send.

    `start` is told how many tokens the prompt has, 0 where that is not known yet.
    """

    def start(self, prompt_tokens: int) -> bytes: ...
    def delta(self, delta: Delta) -> bytes: ...
    def finish(self, answer: ChatAnswer) -> bytes: ...
    def failure(self, error: ApiError) -> bytes: ...


class Dialect(Protocol):
    """`prefix` begins the ids of answers; `keep_alive` may be sent between any two events.

    `marks` is found in every path that the dialect is spoken at, and in no other's.

    `turns` are the paths, below a session's address, of requests that are answered with a turn, `counts` the one of
    those that count a prompt's tokens. `addressed` is what a request's address says beside its body: fields to add.
    """

    @property
    def prefix(self) -> str: ...
    @property
    def keep_alive(self) -> bytes: ...
    @property
    def marks(self) -> re.Pattern[str]: ...
    @property
    def turns(self) -> Sequence[str]: ...
    @property
    def counts(self) -> str | None: ...
    def addressed(self, match: Mapping[str, str], query: Mapping[str, str]) -> Mapping[str, Any]: ...
    def parse(self, body: Mapping[str, Any]) -> ChatRequest: ...
    def answer(self, request: ChatRequest, answer: ChatAnswer) -> dict[str, Any]: ...
    def events(self, request: ChatRequest, stamp: Stamp) -> Events: ...
    def counted(self, tokens: int) -> dict[str, Any]: ...
    def error(self, error: ApiError) -> dict[str, Any]: ...


class Bodied:
    """A dialect whose requests say everything in their bodies."""

    counts: str | None = None

    def addressed(self, match: Mapping[str, str], query: Mapping[str, str]) -> Mapping[str, Any]:
        return {}

    def counted(self, tokens: int) -> dict[str, Any]:
        return {"input_tokens": tokens}


def sse(event: Any, *, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(event) + b"\n\n"


def openai_error(error: ApiError) -> dict[str, Any]:
    return error.body()
