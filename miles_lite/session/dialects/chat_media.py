"""Images and files in the tool messages of chat completions.

Invariant: a message without them comes out as the same object.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.dialects.media import Media, type_in

_KINDS = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video", "file": "file"}


def pictured(message: Json) -> bool:
    """Whether a tool message holds anything but texts."""
    content = message.get("content") if isinstance(message, dict) and message.get("role") == "tool" else None
    return isinstance(content, list) and any(_kind(part) for part in content)


def without_media(messages: Sequence[Json], media: Media) -> list[Json]:
    """The messages with texts in the place of what tools returned. Raises ApiError 400."""
    return [_without_media(one, media, f"messages[{n}]") if pictured(one) else one for n, one in enumerate(messages)]


def _without_media(message: JsonMapping, media: Media, path: str) -> JsonObject:
    parts = [_part(part, media, f"{path}.content[{n}]") for n, part in enumerate(message["content"])]
    return {**message, "content": parts}


def _part(part: Json, media: Media, path: str) -> Json:
    kind = _kind(part)
    if kind is None:
        return part
    held = part.get(part["type"])
    url = held.get("url") or held.get("file_data") if isinstance(held, dict) else held
    return {"type": "text", "text": media.placeholder(kind, type_in(url), path)}


def _kind(part: Json) -> str | None:
    """What a part is besides text."""
    said = part.get("type") if isinstance(part, dict) else None
    return _KINDS.get(said) if isinstance(said, str) else None
