"""When a message that a harness sends again is the one the session holds.

Invariant: messages that harnesses wrote are compared by digest, replies that the session gave by `same_reply`; both
read the same canonical fields, and neither raises on anything JSON can hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from miles_lite.errors import UserError
from miles_lite.tito.messages import Message, as_object, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """`fields` are compared beside the role.

    `omits`: a reply's field that the harness leaves out (or sends as None, "" or []) equals the stored one, as long as
    content or tool calls are there to compare. `json_arguments`: tool arguments compare as JSON. `strips`: outer white
    space is ignored.
    """

    fields: tuple[str, ...] = ("content", "reasoning_content", "tool_calls")
    omits: bool = False
    json_arguments: bool = False
    strips: bool = False

    def digest(self, message: Message) -> bytes:
        """Of a message the harness wrote: equal digests are equal messages."""
        names = (*self.fields, "tool_call_id", "name")
        canonical = [message.get("role"), *(self._canonical(name, message.get(name)) for name in names)]
        return blake2b(_dumps(canonical), digest_size=16).digest()

    def same_reply(self, stored: Message, replayed: Message) -> bool:
        """Whether `replayed` is the reply `stored`. An assistant message is expected."""
        told = 0
        for name in self.fields:
            ours, theirs = (self._canonical(name, message.get(name)) for message in (stored, replayed))
            if not theirs and self.omits:
                continue
            if not (self._same_calls(ours, theirs) if name == "tool_calls" else ours == theirs):
                return False
            told += name != "reasoning_content"
        return told > 0 or not (stored.get("content") or stored.get("tool_calls"))

    def _same_calls(self, ours: Any, theirs: Any) -> bool:
        if not self.omits:
            return bool(ours == theirs)
        return len(ours) == len(theirs) and all(
            mine[1:] == other[1:] and other[0] in ("", mine[0]) for mine, other in zip(ours, theirs, strict=True)
        )

    def _canonical(self, name: str, value: Any) -> Any:
        """Comparable and JSON-encodable; empty for None, "" and []."""
        if not value:
            return [] if name == "tool_calls" else ""
        if name == "tool_calls":
            return [self._canonical_call(call) for call in value]
        text = text_of(value) if name == "content" else value if isinstance(value, str) else _dumps(value).decode()
        return text.strip() if self.strips else text

    def _canonical_call(self, call: Mapping[str, Any]) -> list[Any]:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if self.json_arguments:
            arguments = _dumps(as_object(arguments)).decode()
        return [call.get("id") or "", function.get("name") or "", arguments]


MATCHERS = {
    "replay": Matcher(omits=True, json_arguments=True, strips=True),
    "strict": Matcher(),
    "loose_tool_call": Matcher(json_arguments=True),
    "role_content_only": Matcher(fields=("content",)),
}


def matcher_named(name: str) -> Matcher:
    """Raises UserError for a name that does not exist."""
    if name not in MATCHERS:
        raise UserError(f"--session-message-matcher {name}: choose one of {', '.join(MATCHERS)}")
    return MATCHERS[name]


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
