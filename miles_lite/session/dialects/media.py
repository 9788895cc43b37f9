"""Images and files that tools return to a model that reads text.

Invariant: what stands for one depends on its kind alone, so that a conversation sent again is the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.session.errors import ApiError, bad_request


@dataclass(frozen=True, slots=True)
class Media:
    """With `refused` there is no request that goes on without what it showed."""

    refused: bool = False

    def placeholder(self, kind: str, media_type: object, path: str) -> str:
        """The text that says what was left out. Raises ApiError 400."""
        if self.refused:
            raise not_text(kind, path)
        named = f"{kind} ({media_type})" if isinstance(media_type, str) and media_type else kind
        return f"[{named} left out: the model reads text only]"


def not_text(kind: str, path: str) -> ApiError:
    return bad_request(f"the model reads text only: {path} is of the kind {kind!r}", param=path)


def type_in(url: object) -> str:
    """The media type of a data URL; empty for any other."""
    head = url[5:100] if isinstance(url, str) and url.startswith("data:") else ""
    return head.partition(",")[0].partition(";")[0]
