"""When a message that a harness sends again is the one the session holds.

Invariant: messages that harnesses wrote are compared by `same`, replies that the session gave by `same_reply`; both
read the same canonical fields, and neither raises on anything JSON can hold. What is equal as it stands is the same
without a closer look, so that a replayed conversation costs about a comparison of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import orjson

from miles_lite.errors import UserError
from miles_lite.hooks import load_hook
from miles_lite.session.errors import ApiError
from miles_lite.tito.messages import Message, as_object, text_of


class Matcher(Protocol):
    """Compares messages. `digest` tells requests apart: equal digests are equal messages."""

    def digest(self, message: Message) -> bytes: ...
    def same(self, stored: Message, replayed: Message) -> bool: ...
    def same_reply(self, stored: Message, replayed: Message) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldMatcher:
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
        canonical = [message.get("role"), *(self._canonical(name, message.get(name)) for name in self._names)]
        return blake2b(canonical_json(canonical), digest_size=16).digest()

    def same(self, stored: Message, replayed: Message) -> bool:
        """Whether `replayed` is the message `stored`, which a harness wrote; an earlier reply may be among those."""
        if stored == replayed:
            return True
        if stored.get("role") == replayed.get("role") == "assistant":
            return self.same_reply(stored, replayed)
        return self.differs(stored, replayed) is None

    def differs(self, stored: Message, replayed: Message) -> str | None:
        """The first field in which they differ; None when they are the same."""
        if stored.get("role") != replayed.get("role"):
            return "role"
        for name in self._names:
            ours, theirs = stored.get(name), replayed.get(name)
            if ours != theirs and self._canonical(name, ours) != self._canonical(name, theirs):
                return name
        return None

    def same_reply(self, stored: Message, replayed: Message) -> bool:
        """Whether `replayed` is the reply `stored`. An assistant message is expected."""
        told = 0
        for name in self.fields:
            ours, theirs = stored.get(name), replayed.get(name)
            if ours and ours == theirs:
                told += name != "reasoning_content"
                continue
            ours, theirs = self._canonical(name, ours), self._canonical(name, theirs)
            if not theirs and self.omits:
                continue
            if not (self._same_calls(ours, theirs) if name == "tool_calls" else ours == theirs):
                return False
            told += name != "reasoning_content"
        return told > 0 or not (self._canonical("content", stored.get("content")) or stored.get("tool_calls"))

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.fields, "tool_call_id", "name")

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
        text = (
            text_of(value) if name == "content" else value if isinstance(value, str) else canonical_json(value).decode()
        )
        return text.strip() if self.strips else text

    def _canonical_call(self, call: Mapping[str, Any]) -> list[Any]:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if self.json_arguments:
            arguments = canonical_json(as_object(arguments)).decode()
        return [call.get("id") or "", function.get("name") or "", arguments]


@dataclass(frozen=True, slots=True)
class CustomMatcher:
    """A user's `fn(stored, replayed) -> bool`, called for every message that does not equal the stored one."""

    path: str
    function: Callable[[dict[str, Any], dict[str, Any]], object]

    def digest(self, message: Message) -> bytes:
        return MATCHERS["strict"].digest(message)

    def same(self, stored: Message, replayed: Message) -> bool:
        """Raises ApiError 500 naming the function when it fails or answers something else than True or False."""
        if stored == replayed:
            return True
        try:
            verdict = self.function(dict(stored), dict(replayed))
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(verdict, bool):
            raise self._failed(f"returned {verdict!r}, not True or False")
        return verdict

    def same_reply(self, stored: Message, replayed: Message) -> bool:
        return self.same(stored, replayed)

    def _failed(self, what: str) -> ApiError:
        return ApiError(500, f"--session-message-matcher {self.path} {what}", code="matcher_failed")


MATCHERS: dict[str, FieldMatcher] = {
    "replay": FieldMatcher(omits=True, json_arguments=True, strips=True),
    "strict": FieldMatcher(),
    "loose_tool_call": FieldMatcher(json_arguments=True),
    "role_content_only": FieldMatcher(fields=("content",)),
}


def matcher_named(name: str) -> Matcher:
    """One of MATCHERS, or the user's at a dotted path. Raises UserError for a name that does not exist."""
    if name in MATCHERS:
        return MATCHERS[name]
    if "." not in name and ":" not in name:
        raise UserError(f"--session-message-matcher {name}: choose one of {', '.join(MATCHERS)} or package.module.fn")
    return CustomMatcher(name, load_hook(name, flag="--session-message-matcher"))


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, of anything that JSON can hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
