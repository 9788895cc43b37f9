"""Request bodies as JSON. Of a conversation that is sent again, only what follows the messages already seen is parsed.

Nor is it checked again: a `Body` gives the messages that the session holds as the objects that it holds.

Invariant: `read` gives what the parser gives for the whole body, whatever was kept before. Where a list of messages
begins and ends is not guessed: the parser has accepted what stands on either side of the cut.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson
from xxhash import xxh3_128_digest

from miles_lite.process.json_types import Json, JsonObject, parsed
from miles_lite.session.errors import bad_request
from miles_lite.tito.chat_messages import Message

_OPENING = re.compile(rb'"messages"\s*:\s*\[')
_MARK = uuid.uuid4().hex
"""Stands for the messages that were seen; no client knows it."""
_TRIES = 256
"""Brackets looked at, from the end of a body, for the one that closes its messages: those of tools come later."""
_CONVERSATIONS = 4
"""Of this many a session may have at once, as those of an agent and its sub-agents, without being parsed as a whole."""


class Conversation(list[Message]):
    """The messages of a body. `held` is the conversation that they probably repeat, as the session holds it."""

    __slots__ = ("held",)

    def __init__(self, messages: Iterable[Message], held: Sequence[Message] = ()) -> None:
        super().__init__(messages)
        self.held = held

    def unchecked(self) -> list[tuple[int, Json]]:
        """Put what is held in the place of messages that equal it; the others, and where they are.

        What is held has been checked when it came, so that a long conversation sent again costs a comparison of its
        bytes.
        """
        count, others = len(self.held), []
        if self[:count] == list(self.held):
            self[:count] = self.held
            return list(enumerate(self[count:], count))
        for index, (message, known) in enumerate(zip(self, self.held, strict=False)):
            if message == known:
                self[index] = known
            else:
                others.append((index, message))
        return others + list(enumerate(self[count:], count))


class Body:
    """A request's body, and what of it the session has seen."""

    def __init__(self, raw: bytes, bodies: Bodies, held: Sequence[Message] = ()) -> None:
        """`held` is the conversation of the session's latest turn, as a client sent it last."""
        self._raw, self._bodies, self._held = raw, bodies, held
        self._known = bodies.find_prefix(raw)

    @property
    def fresh(self) -> int:
        """Bytes that were not seen before."""
        return len(self._raw) - (self._known.size if self._known else 0)

    def parse(self) -> JsonObject:
        """What it says; a list of `messages` is a `Conversation`. Raises ApiError 400."""
        try:
            body = self._bodies.read(self._raw, self._known) if self._raw else {}
        except orjson.JSONDecodeError as error:
            raise bad_request(f"the request body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise bad_request("the request body must be a JSON object")
        if isinstance(messages := body.get("messages"), list):
            body["messages"] = Conversation(messages, self._held)
        return body

    def keep(self, bodies: Bodies, messages: Sequence[Message]) -> None:
        """Let `bodies` know it, unless the dialect put other `messages` in the place of those that it says."""
        if isinstance(messages, Conversation):
            bodies.keep(self._raw, messages)


class Bodies:
    """What was seen of the bodies of one session."""

    def __init__(self) -> None:
        self._seen: list[SeenPrefix] = []

    @property
    def size(self) -> int:
        """Bytes of memory beside the messages, which the session's tree holds."""
        return sum(len(seen.head) for seen in self._seen)

    def find_prefix(self, raw: bytes) -> SeenPrefix | None:
        """The beginning of `raw` that was seen."""
        return next((seen for seen in self._seen if seen.begins(raw)), None)

    def read(self, raw: bytes, seen: SeenPrefix | None) -> Json:
        """What `raw`, of which `seen` is known, says; messages that were seen are the objects that were kept.

        Raises orjson.JSONDecodeError.
        """
        if seen is not None:
            body = _read(b'%b"%b"%b' % (seen.head, _MARK.encode(), raw[seen.size :])) or {}
            messages = body.get("messages")
            if isinstance(messages, list) and messages[:1] == [_MARK]:
                messages[:1] = seen.messages
                return body
        return orjson.loads(raw)

    def keep(self, raw: bytes, messages: Sequence[Message]) -> None:
        """Know `raw`, which says `messages`, when the next body comes; not one whose messages cannot be told apart."""
        before = self.find_prefix(raw)
        start = before or _opening(raw)
        size = None if start is None or not messages else _end(raw, start)
        if start is not None and size is not None:
            seen = SeenPrefix(size, _digest(raw, size), start.head, tuple(messages), len(raw) - size)
            self._seen = [seen, *(one for one in self._seen if one is not before)][:_CONVERSATIONS]


@dataclass(frozen=True, slots=True)
class SeenPrefix:
    """The first `size` bytes of a body, to the end of its last message, by their digest (128 bits of xxh3).

    They are `head` and then `messages`; `rest` bytes followed them.
    """

    size: int
    digest: bytes
    head: bytes
    messages: Sequence[Message]
    rest: int

    def begins(self, raw: bytes) -> bool:
        return len(raw) > self.size and _digest(raw, self.size) == self.digest


def _opening(raw: bytes) -> SeenPrefix | None:
    """The beginning of a body up to the bracket that opens its messages."""
    found = _OPENING.search(raw)
    if found is None or _read(raw[: found.end()] + b"]}") is None:
        return None
    head = raw[: found.end()]
    return SeenPrefix(len(head), b"", head, (), 0)


def _end(raw: bytes, start: SeenPrefix) -> int | None:
    """Where the list of messages ends: as far from the body's end as last time, or at a bracket.

    From the last one back; None if it is not among those looked at.
    """
    size = max(start.size, len(raw) - start.rest)
    for _ in range(_TRIES):
        if _ends(raw, start, size):
            return size
        size = raw.rfind(b"]", start.size, size)
        if size < 0:
            break
    return None


def _ends(raw: bytes, start: SeenPrefix, size: int) -> bool:
    """The bytes from `start` to `size` are elements of the list, and what follows ends it and does not replace it."""
    after = _read(b'{"":[' + raw[size:])
    if after is None or "messages" in after:
        return False
    return _read(b"[%b%b]" % (b'""' if start.messages else b"", raw[start.size : size])) is not None


def _read(data: bytes) -> Json:
    return parsed(data, orjson.loads)


def _digest(raw: bytes, size: int) -> bytes:
    return xxh3_128_digest(memoryview(raw)[:size])
