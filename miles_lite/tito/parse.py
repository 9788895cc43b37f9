"""Replies: what a model wrote, as content, reasoning and tool calls.

Invariant: nothing raises and nothing is lost: what is no well-formed call of a known form stays in the content. What
`certain` says of an unfinished text stands, whatever follows it: it is the beginning of what `parse` says of the whole.
Tool calls, and content that may be one, wait until the reply is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from miles_lite.process.json_types import Json, is_unicode, parsed
from miles_lite.tito.chat_messages import Tools, readable_arguments
from miles_lite.tito.reasoning import CLOSE_THINK, Reasoning, Thoughts, hold_back

OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{OPEN_CALL}(.*?){CLOSE_CALL}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the text of a JSON object. `id` is the one the model wrote (Kimi), else None."""

    name: str
    arguments: str
    id: str | None = None

    @property
    def well_formed(self) -> bool:
        return bool(self.name) and is_unicode(self.name + self.arguments) and readable_arguments(self.arguments)


@dataclass(frozen=True, slots=True)
class Reply:
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Marks:
    """What a tool call begins with: any of `anywhere`, or `first` where it is the first that is said.

    Without any, a call may begin with whatever the content does.
    """

    anywhere: tuple[str, ...] = ()
    first: str = ""

    def start(self, content: str) -> int:
        """Where the first call may begin; the content's length when it holds none."""
        if not self.anywhere or self._leads(content):
            return 0
        return min((place for mark in self.anywhere if (place := content.find(mark)) >= 0), default=len(content))

    def lead(self, content: str) -> str:
        """What of unfinished content is certain to come before all calls."""
        if not self.anywhere or self.first.startswith(content.lstrip()):
            return ""
        return hold_back(content[: self.start(content)], *self.anywhere).rstrip()

    def _leads(self, content: str) -> bool:
        return bool(self.first) and content.lstrip().startswith(self.first)


class Calls(Protocol):
    """One form of tool calls."""

    @property
    def name(self) -> str: ...
    @property
    def marks(self) -> Marks: ...

    def read(self, text: str, tools: Tools) -> tuple[str, tuple[ToolCall, ...]]:
        """(the text beside the calls, the calls) of `text`, which begins with a mark. Without calls it is all text."""
        ...


@dataclass(frozen=True, slots=True)
class ReplyParser:
    """A form of reasoning and a form of tool calls, each None where a model has none.

    `in_reasoning`: the generation prompt has opened the reasoning already. Without tools nothing is a tool call.
    """

    reasoning: Reasoning | None
    calls: Calls | None

    def parse(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        thought, content = self.reasoning.split(text, inside=in_reasoning) if self.reasoning else ("", text)
        if self.calls is not None and tools:
            start = self.calls.marks.start(content)
            rest, calls = self.calls.read(content[start:], tools) if start < len(content) else ("", ())
            if calls:
                return Reply((content[:start] + rest).rstrip(), thought, calls)
        return Reply(content, thought)

    def certain(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        """What of an unfinished text stands."""
        thought, content = self.reasoning.begun(text, inside=in_reasoning) if self.reasoning else ("", text)
        if self.calls is not None and tools:
            content = self.calls.marks.lead(content)
        return Reply(content, thought)

    def stream(self, *, tools: Tools | None, in_reasoning: bool) -> ReplyStream:
        return ReplyStream(partial(self.certain, tools=tools, in_reasoning=in_reasoning))


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Calls as JSON objects in <tool_call> tags (Hermes, Qwen)."""

    name: str = "JSON in <tool_call> tags"
    marks: Marks = Marks((OPEN_CALL,))

    def read(self, text: str, tools: Tools) -> tuple[str, tuple[ToolCall, ...]]:
        calls: list[ToolCall] = []
        rest = _CALL.sub(lambda match: _take_call(match, calls), text)
        return rest, tuple(calls)


@dataclass(slots=True)
class ReplyStream:
    """Hands out a reply while it grows. `feed` and `finish` return what is new, in order: reasoning, content, calls."""

    certain: Callable[[str], Reply]
    _reasoning: _Said = field(default_factory=lambda: _Said())
    _content: _Said = field(default_factory=lambda: _Said())

    def feed(self, text: str) -> Reply:
        """`text` is all that was written so far; a cut UTF-8 character at its end is waited for."""
        seen = self.certain(text.rstrip("\ufffd"))
        return Reply(self._content.more(seen.content), self._reasoning.more(seen.reasoning))

    def finish(self, whole: Reply) -> Reply:
        """`whole` is what `parse` says of all that was written."""
        self._reasoning.check(whole.reasoning)
        self._content.check(whole.content)
        return Reply(self._content.more(whole.content), self._reasoning.more(whole.reasoning), whole.tool_calls)


@dataclass(slots=True)
class _Said:
    """What was said of a growing text."""

    pieces: list[str] = field(default_factory=list)
    size: int = 0

    def more(self, text: str) -> str:
        """What `text`, which goes on from what was said, adds to it; a shorter one adds nothing."""
        new = text[self.size :]
        if new:
            self.pieces.append(new)
            self.size += len(new)
        return new

    def check(self, text: str) -> None:
        said = "".join(self.pieces)
        assert text.startswith(said), f"{said!r} was said, and the reply is {text!r}"


def parser_for(template: str) -> ReplyParser:
    """The built-in parser for the tags that a chat template prints itself."""
    hermes = OPEN_CALL in template and "<function=" not in template and "<arg_key>" not in template
    return ReplyParser(Thoughts() if CLOSE_THINK in template else None, JsonCalls() if hermes else None)


def _take_call(match: re.Match[str], calls: list[ToolCall]) -> str:
    """Collect a well-formed call; returns what stays in the content."""
    made = _call(parsed(match[1]))
    if made is None or not made.well_formed:
        return match[0]
    calls.append(made)
    return ""


def _call(call: Json) -> ToolCall | None:
    """None when this is no call."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(call["name"], json.dumps(arguments, ensure_ascii=False))
