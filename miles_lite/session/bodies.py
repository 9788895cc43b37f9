"""Request bodies as JSON. Of a conversation that is sent again, only what follows the messages already seen is parsed.

Invariant: `read` gives what the parser gives for the whole body, whatever was seen before. Where a list of messages
begins and ends is not guessed: the parser has accepted what stands on either side of the cut.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from xxhash import xxh3_128_digest

_OPENING = re.compile(rb'"messages"\s*:\s*\[')
_MARK = uuid.uuid4().hex
"""Stands for the messages that were seen; no client knows it."""
_TRIES = 256
"""Brackets looked at, from the end of a body, for the one that closes its messages: those of tools come later."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The first `size` bytes of a body, to the end of its last message, by their digest (128 bits of xxh3).

    They are `head` and then `messages`; `rest` bytes followed them.
    """

    size: int
    digest: bytes
    head: bytes
    messages: Sequence[Any]
    rest: int

    @classmethod
    def of(cls, raw: bytes, messages: Sequence[Any], *, before: Seen | None) -> Seen | None:
        """What to know when the next body comes. `raw` is valid JSON that says `messages`.

        `before` is what was known when `raw` was read. None for a body in which the messages cannot be told apart.
        """
        start = before if before is not None and before.begins(raw) else _opening(raw)
        if start is None or not messages:
            return None
        for size in _closings(raw, start):
            if _closes(raw, start, size):
                return cls(size, _digest(raw, size), start.head, tuple(messages), len(raw) - size)
        return None

    def begins(self, raw: bytes) -> bool:
        return len(raw) > self.size and _digest(raw, self.size) == self.digest


def read(raw: bytes, seen: Seen | None = None) -> Any:
    """What `raw` says; messages that were seen are the objects that `seen` holds. Raises orjson.JSONDecodeError."""
    if seen is not None and seen.begins(raw):
        body = _parsed(b'%b"%b"%b' % (seen.head, _MARK.encode(), raw[seen.size :])) or {}
        messages = body.get("messages")
        if isinstance(messages, list) and messages[:1] == [_MARK]:
            messages[:1] = seen.messages
            return body
    return orjson.loads(raw)


def _opening(raw: bytes) -> Seen | None:
    """The beginning of a body up to the bracket that opens its messages."""
    found = _OPENING.search(raw)
    if found is None or _parsed(raw[: found.end()] + b"]}") is None:
        return None
    head = raw[: found.end()]
    return Seen(len(head), b"", head, (), 0)


def _closings(raw: bytes, start: Seen) -> Iterator[int]:
    """Where the list may end: as far from the body's end as last time, or at a bracket, from the last one back."""
    size = len(raw)
    yield max(start.size, size - start.rest)
    for _ in range(_TRIES):
        size = raw.rfind(b"]", start.size, size)
        if size < 0:
            return
        yield size


def _closes(raw: bytes, start: Seen, size: int) -> bool:
    """The bytes from `start` to `size` are elements of the list, and what follows ends it and does not replace it."""
    after = _parsed(b'{"":[' + raw[size:])
    if after is None or "messages" in after:
        return False
    return _parsed(b"[%b%b]" % (b'""' if start.messages else b"", raw[start.size : size])) is not None


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _digest(raw: bytes, size: int) -> bytes:
    return xxh3_128_digest(memoryview(raw)[:size])
