"""Server-sent events (WHATWG HTML, section 9.2) out of the chunks of a stream, as OpenAI and SGLang send them.

Invariant: pure; what came after the last whole event is kept for the next chunk.
"""

from __future__ import annotations

DONE = b"data: [DONE]"
"""The last event of a whole stream."""


class Events:
    """The events of one stream."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole, each without the empty line that ends it."""
        *events, self.rest = (self.rest + chunk).split(b"\n\n")
        return events


def payload(event: bytes) -> bytes | None:
    """The JSON object of an event; None for any other event, such as the last."""
    return event[6:] if event.startswith(b"data: {") else None
