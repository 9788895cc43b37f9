"""When a message that a harness sends again is the one the session holds.

Invariant: messages that harnesses wrote are compared by `same`, replies that the session gave by `same_reply`; both
read the same canonical fields, and neither raises on anything JSON can hold. What is equal as it stands is the same
without a closer look, so that a replayed conversation costs about a comparison of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import orjson

from miles_lite.errors import UserError
from miles_lite.hooks import load_hook
from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.session.errors import ApiError
from miles_lite.tito.chat_messages import Message, text_of


class Matcher(Protocol):
    """Compares messages. `digest` tells requests apart: equal digests are equal messages.

    `rewritten` counts the tool calls of a reply, replayed as the same, that came back with other arguments.
    """

    def digest(self, message: Message) -> bytes: ...
    def same(self, stored: Message, replayed: Message) -> bool: ...
    def same_reply(self, stored: Message, replayed: Message) -> bool: ...
    def rewritten(self, stored: Message, replayed: Message) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldMatcher:
    """`fields` are compared beside the role, `marks` in messages that are no replies.

    `omits`: a reply's field that the harness leaves out (or sends as None, "" or []) equals the stored one, as long as
    content or tool calls are there to compare. `json_arguments`: tool arguments compare as JSON. `strips`: outer white
    space is ignored. `call_ids`: a reply's call is known by id and name, and its arguments are the harness's to change.
    """

    fields: tuple[str, ...] = ("content", "reasoning_content", "tool_calls")
    marks: tuple[str, ...] = ("tool_call_id", "name")
    call_ids: bool = False
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
            return self._same_reply(stored, replayed, call_ids=False)
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
        """Whether `replayed` is the reply `stored`, which the session gave. An assistant message is expected."""
        return self._same_reply(stored, replayed, call_ids=self.call_ids)

    def rewritten(self, stored: Message, replayed: Message) -> int:
        ours, theirs = stored.get("tool_calls"), replayed.get("tool_calls")
        if not ours or not theirs or ours == theirs or not self.call_ids:
            return 0
        pairs = zip(self._canonical("tool_calls", ours), self._canonical("tool_calls", theirs), strict=False)
        return sum(mine[2] != other[2] for mine, other in pairs)

    def _same_reply(self, stored: Message, replayed: Message, *, call_ids: bool) -> bool:
        told = 0
        for name in self.fields:
            ours, theirs = stored.get(name), replayed.get(name)
            if ours and ours == theirs:
                told += name != "reasoning_content"
                continue
            ours, theirs = self._canonical(name, ours), self._canonical(name, theirs)
            if not theirs and self.omits:
                continue
            if not (self._same_calls(ours, theirs, call_ids) if name == "tool_calls" else ours == theirs):
                return False
            told += name != "reasoning_content"
        return told > 0 or not (self._canonical("content", stored.get("content")) or stored.get("tool_calls"))

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.fields, *self.marks)

    def _same_calls(self, ours: Json, theirs: Json, call_ids: bool) -> bool:
        def same(mine: list[Json], other: list[Json]) -> bool:
            known = call_ids and mine[0] and mine[:2] == other[:2]
            return known or mine == other or (self.omits and not other[0] and mine[1:] == other[1:])

        return len(ours) == len(theirs) and all(map(same, ours, theirs))

    def _canonical(self, name: str, value: Json) -> Json:
        """Comparable and JSON-encodable; empty for None, "" and []."""
        if not value:
            return [] if name == "tool_calls" else ""
        if name == "tool_calls":
            return [self._canonical_call(call) for call in value]
        text = (
            text_of(value) if name == "content" else value if isinstance(value, str) else canonical_json(value).decode()
        )
        return text.strip() if self.strips else text

    def _canonical_call(self, call: JsonMapping) -> list[object]:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if self.json_arguments:
            arguments = canonical_arguments(arguments)
        return [call.get("id") or "", function.get("name") or "", arguments]


@dataclass(frozen=True, slots=True)
class CustomMatcher:
    """A user's `fn(stored, replayed) -> bool`, called for every message that does not equal the stored one."""

    path: str
    function: Callable[[JsonObject, JsonObject], object]

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

    def rewritten(self, stored: Message, replayed: Message) -> int:
        return 0

    def _failed(self, what: str) -> ApiError:
        return ApiError(500, f"--session-message-matcher {self.path} {what}", code="matcher_failed")


MATCHERS: dict[str, FieldMatcher] = {
    "replay": FieldMatcher(call_ids=True, omits=True, json_arguments=True, strips=True),
    "replay_arguments": FieldMatcher(omits=True, json_arguments=True, strips=True),
    "strict": FieldMatcher(),
    "loose_tool_call": FieldMatcher(json_arguments=True),
    "role_content_only": FieldMatcher(fields=("content",), marks=()),
}


def matcher_named(name: str) -> Matcher:
    """One of MATCHERS, or the user's at a dotted path. Raises UserError for a name that does not exist."""
    if name in MATCHERS:
        return MATCHERS[name]
    if "." not in name and ":" not in name:
        raise UserError(f"--session-message-matcher {name}: choose one of {', '.join(MATCHERS)} or package.module.fn")
    return CustomMatcher(name, load_hook(name, flag="--session-message-matcher"))


def canonical_arguments(arguments: Json) -> str:
    """Tool arguments as JSON in which equal objects are written alike; text that is no JSON object stays as it is.

    None and "" are an empty object. Equal numbers are equal however they are spelled.
    """
    text = arguments if isinstance(arguments, str) else canonical_json(arguments or {}).decode()
    try:
        parsed = json.loads(text or "{}", parse_int=_number, parse_float=_number)
        return orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS).decode() if isinstance(parsed, dict) else text
    except (ValueError, TypeError, RecursionError):  # TypeError: text that is no Unicode
        return text


def _number(text: str) -> orjson.Fragment:
    """A number in its one spelling: integers exactly, whatever their size, others as the double that they denote."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    scale = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    if not significant:
        return orjson.Fragment(b"0")
    sign = "-" if text.startswith("-") else ""
    return orjson.Fragment(f"{sign}{significant}e{scale}" if scale >= 0 else repr(float(text)))


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys, of anything that JSON can hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True).encode()
