"""Turns as a session keeps them: what one request adds, and what an engine sampled for it.

Invariant: a turn never changes. Ids, logprobs and spans are held as the bytes of little-endian numbers, as the journal
writes arrays: there may be a million turns, and for a short piece an array object is a third of its size. What they are
read as is read-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.history.agent_identity import Caller, Hints
from miles_lite.tito.chat_messages import Message

_ID, _LOGPROB, _SPAN = np.dtype("<i4"), np.dtype("<f4"), np.dtype("<i8")

Span = tuple[int, int, int]
"""(weight version, start, end): which version sampled output tokens start..end-1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What an engine produced for one request.

    ids int32 [n], logprobs float32 [n] under the distribution sampled from, spans covering 0..n; `stop` is the stop
    token when it was sampled (it is then the last id). `started` and `finished` are seconds of one clock, `prefill` the
    seconds until the engine had its first token, where it says. `params` are the sampling parameters the engine was
    sent, but for max_new_tokens, which is `limit`; `experts` see `session.experts`.
    """

    token_bytes: bytes
    span_bytes: bytes
    finish_reason: str
    stop: int | None
    started: float
    finished: float
    params: JsonMapping = field(default_factory=dict)
    limit: int | None = None
    experts: np.ndarray | None = None
    prefill: float | None = None

    @property
    def size(self) -> int:
        """Sampled tokens."""
        return len(self.token_bytes) // (_ID.itemsize + _LOGPROB.itemsize)

    @property
    def ids(self) -> np.ndarray:
        return np.frombuffer(self.token_bytes, _ID, self.size)

    @property
    def logprobs(self) -> np.ndarray:
        return np.frombuffer(self.token_bytes, _LOGPROB, offset=self.size * _ID.itemsize)

    @property
    def spans(self) -> tuple[Span, ...]:
        version, start, end = np.frombuffer(self.span_bytes, _SPAN).reshape(-1, 3).T.tolist()
        return tuple(zip(version, start, end, strict=True))

    @property
    def temperature(self) -> float:
        return float(self.params.get("temperature", 1.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turn:
    """One request and its reply. `added` is what this turn adds: messages, then the reply.

    `start` is where its prompt ids begin. `root` says why the turn begins a new root (see `Place`). `retries` is the
    number of the turn whose request this one is, provably sent again. `hints` are what the harness said about itself.
    """

    number: int
    parent: Turn | None
    caller: Caller
    added: tuple[Message, ...]
    start: int
    drop: int
    prompt_bytes: bytes
    output: Output
    root: str | None = None
    retries: int | None = None
    hints: Hints = ()

    @property
    def prompt_ids(self) -> np.ndarray:
        """int32 ids that stand before the output: what the template prints for the messages."""
        return np.frombuffer(self.prompt_bytes, _ID)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Those of the request that its place had not matched."""
        return self.added[:-1]

    @property
    def reply(self) -> Message:
        return self.added[-1]

    @property
    def end(self) -> int:
        """Tokens of the whole context, this turn's output included."""
        return self.start + len(self.prompt_bytes) // _ID.itemsize + self.output.size

    @property
    def experts(self) -> np.ndarray | None:
        return self.output.experts

    def path(self) -> list[Turn]:
        """From the root to this turn."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]


def backwards(turn: Turn | None, drop: int) -> Iterator[tuple[Turn, np.ndarray]]:
    """The turns of a path from the last to the first, each with what a context keeps of its output ids.

    The last turn is without its last `drop` ids.
    """
    while turn is not None:
        ids = turn.output.ids
        yield turn, ids[: len(ids) - drop]
        drop, turn = turn.drop, turn.parent


def pack_ids(ids: ArrayLike) -> bytes:
    return np.asarray(ids, _ID).tobytes()


def pack_tokens(ids: ArrayLike, logprobs: ArrayLike) -> bytes:
    """The ids, then as many logprobs."""
    return pack_ids(ids) + np.asarray(logprobs, _LOGPROB).tobytes()


def pack_spans(spans: Sequence[Span]) -> bytes:
    return np.asarray(spans, _SPAN).tobytes()


def versions_per_token(spans: Sequence[Span], size: int) -> np.ndarray:
    """int32 [size]: spans laid out per token."""
    versions = np.zeros(size, np.int32)
    for version, start, end in spans:
        versions[start:end] = version
    return versions


def sampling(output: Output) -> JsonObject:
    """All sampling parameters the engine was sent."""
    return {**output.params} | ({} if output.limit is None else {"max_new_tokens": output.limit})
