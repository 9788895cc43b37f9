"""How large a request may be: what cannot fit the model's context is refused before it is parsed, or rendered.

Invariant: a bound follows from the context's length alone, and no conversation that fits the context reaches it; media,
which are no text to the model, are bounded apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import StreamReader

from miles_lite.process.json_types import Json
from miles_lite.session.dialects.request import ChatRequest
from miles_lite.session.errors import ApiError

MAX_BODY_BYTES = 64 * 2**20
BYTES_PER_TOKEN = 32
"""Of a body: what JSON makes of text may be six times as long as its characters."""
CHARACTERS_PER_TOKEN = 16
_LEAST_BYTES, _LEAST_CONTAINERS, _LEAST_CHARACTERS = 2**23, 50_000, 2**20
_UNCOUNTED = 2**18
"""Bytes of a body that is parsed within milliseconds whatever it holds."""
_MEDIA = b"base64"


@dataclass(frozen=True, slots=True)
class Limits:
    """For a model that takes `context_length` tokens."""

    context_length: int

    @property
    def body(self) -> int:
        """Bytes of a body without media."""
        return min(MAX_BODY_BYTES, max(_LEAST_BYTES, BYTES_PER_TOKEN * self.context_length))

    @property
    def containers(self) -> int:
        """Objects and lists of a body, counted by their brackets, those within text included."""
        return max(_LEAST_CONTAINERS, self.context_length)

    @property
    def characters(self) -> int:
        """Of messages and tools."""
        return max(_LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * self.context_length)

    async def read(self, content: StreamReader) -> bytes:
        """The whole body. Raises ApiError 413 as soon as it is too large."""
        pieces: list[bytes] = []
        size, most = 0, self.body
        async for piece in content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raw = b"".join(pieces)
                most = MAX_BODY_BYTES if _MEDIA in raw else most
                if size > most:
                    raise self._too_large(f"is over {most} bytes")
                pieces = [raw]
        raw = b"".join(pieces)
        if size > _UNCOUNTED and (found := raw.count(b"{") + raw.count(b"[")) > self.containers:
            raise self._too_large(f"has {found} objects and lists: {self.containers} are the most")
        return raw

    def check(self, request: ChatRequest) -> None:
        """Raises ApiError 400 for more text than any context of this length holds."""
        for name, value in (("tools", request.tools), ("messages", request.messages)):
            size = sum(map(len, _texts(value)))
            if size > self.characters:
                raise ApiError(
                    400,
                    f"{name} hold {size} characters: {self.characters} are the most for a context of "
                    f"{self.context_length} tokens",
                    param=name,
                    code="context_length_exceeded",
                )

    def _too_large(self, what: str) -> ApiError:
        message = f"the request body {what}, for a context of {self.context_length} tokens"
        return ApiError(413, message, code="request_too_large")


def _texts(value: Json) -> Iterator[str]:
    """The texts in JSON, those of keys left out."""
    level = [value]
    while level:
        node = level.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            level.extend(node.values())
        elif isinstance(node, list | tuple):
            level.extend(node)
