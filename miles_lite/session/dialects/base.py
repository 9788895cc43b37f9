"""What every dialect has: a reader of requests, a writer of answers, streams and errors.

Invariant: a dialect holds no state of its own; an `Events` holds that of one stream, whose bytes are sent in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import orjson

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.known_fields import Table
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta
from miles_lite.session.dialects.typed_json import Struct
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


@dataclass(frozen=True)
class Route:
    """`path` below a session's address; what stands in braces is a variable, as a regular expression where it has one.

    `shown` is the path as people write it, where that differs. A `turn` answers a request, `count` tells how many
    tokens its prompt has; `models` lists the one model, `model` tells of it under any name.
    """

    does: Literal["turn", "count", "models", "model"]
    path: str
    about: str
    shown: str = ""
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{\w+:?([^{}]*)\}", lambda found: f"(?:{found[1] or '[^/]+'})", self.path))

    def begins(self, path: str) -> bool:
        """Whether a path leads here, or further down."""
        return self._pattern.search(path) is not None


class Dialect(Protocol):
    """A wire format: where it is spoken (`routes`), what a request holds (`body`), and what of that is known (`fields`,
    `tools`).

    `prefix` begins the ids of answers; `keep_alive` may be sent between any two events. `addressed` is what a request's
    address says beside its body: fields to add. It is made with how it takes what is not text.
    """

    def __init__(self, media: Media = ..., /) -> None: ...
    @property
    def prefix(self) -> str: ...
    @property
    def keep_alive(self) -> bytes: ...
    @property
    def routes(self) -> Sequence[Route]: ...
    @property
    def body(self) -> type[Struct]: ...
    @property
    def fields(self) -> Table: ...
    @property
    def tools(self) -> Table: ...
    def addressed(self, match: Mapping[str, str], query: str) -> JsonMapping: ...
    def parse(self, body: JsonMapping) -> ChatRequest: ...
    def answer(self, request: ChatRequest, answer: ChatAnswer) -> JsonObject: ...
    def events(self, request: ChatRequest, stamp: Stamp) -> Events: ...
    def counted(self, tokens: int) -> JsonObject: ...
    def error(self, error: ApiError) -> JsonObject: ...


class Bodied:
    """A dialect whose requests say everything in their bodies."""

    def addressed(self, match: Mapping[str, str], query: str) -> JsonMapping:
        return {}

    def counted(self, tokens: int) -> JsonObject:
        return {"input_tokens": tokens}


def sse(event: Json, *, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(event) + b"\n\n"


def openai_error(error: ApiError) -> JsonObject:
    return error.body()
