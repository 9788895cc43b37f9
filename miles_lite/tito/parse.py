"""Replies: what a model wrote, as content, reasoning and tool calls.

Invariant: nothing raises and nothing is lost: a malformed tool call stays in the content, and the pieces that `feed`
hands out while a reply streams add up to what `parse` says of the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from miles_lite.tito.messages import Tools, is_unicode

OPEN_THINK, CLOSE_THINK = "<think>", "</think>"
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{OPEN_CALL}(.*?){CLOSE_CALL}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is the text of a JSON object. `id` is the one the model wrote (Kimi), else None."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


Visible = Callable[[str], Reply]
"""Given all text so far: what of reasoning, content and tool calls is certain. Called with ever longer texts."""


class ReplyParser(Protocol):
    """`in_reasoning`: the generation prompt has opened the reasoning already. Without tools nothing is a tool call."""

    def parse(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply: ...

    def stream(self, *, tools: Tools | None, in_reasoning: bool) -> Visible: ...


@dataclass(frozen=True, slots=True)
class TagParser:
    """Reasoning in <think> tags and calls as JSON in <tool_call> tags (Hermes, Qwen), each only where it is in use."""

    thinks: bool
    calls: bool

    def parse(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        reasoning, content = self._split_reasoning(text, in_reasoning)
        if not (self.calls and tools and OPEN_CALL in content):
            return Reply(content, reasoning)
        calls: list[ToolCall] = []
        rest = _CALL.sub(lambda match: _take_call(match, calls), content)
        return Reply(rest.rstrip() if calls else content, reasoning, tuple(calls))

    def stream(self, *, tools: Tools | None, in_reasoning: bool) -> Visible:
        return partial(self.visible, tools=tools, in_reasoning=in_reasoning)

    def visible(self, text: str, *, tools: Tools | None, in_reasoning: bool) -> Reply:
        """What of an unfinished text is certain to be a prefix of the final reasoning, content and tool calls."""
        if self.thinks and OPEN_THINK.startswith(text.lstrip()):
            return Reply()
        reasoning, content = self._split_reasoning(text, in_reasoning)
        if not content and CLOSE_THINK not in text:
            return Reply(reasoning=_hold_back(reasoning, CLOSE_THINK).rstrip())
        calls: list[ToolCall] = []
        if self.calls and tools:
            for match in _CALL.finditer(content):
                _take_call(match, calls)
            content = _hold_back(content.partition(OPEN_CALL)[0], OPEN_CALL).rstrip()
        return Reply(content, reasoning, tuple(calls))

    def _split_reasoning(self, text: str, in_reasoning: bool) -> tuple[str, str]:
        opened = text.lstrip().startswith(OPEN_THINK)
        if not self.thinks or not (in_reasoning or opened):
            return "", text
        body = text.lstrip()[len(OPEN_THINK) :] if opened else text
        reasoning, closed, content = body.partition(CLOSE_THINK)
        return reasoning.strip("\n") if closed else reasoning.lstrip("\n"), content.lstrip("\n")


@dataclass(slots=True)
class ReplyStream:
    """Hands out a reply while it grows. `feed` and `finish` return what is new."""

    visible: Visible
    _given: Reply = Reply()

    def feed(self, text: str) -> Reply:
        """`text` is all that was written so far; a cut UTF-8 character at its end is waited for."""
        return self._new(self.visible(text.rstrip("\ufffd")))

    def finish(self, whole: Reply) -> Reply:
        return self._new(whole)

    def _new(self, seen: Reply) -> Reply:
        given, self._given = self._given, _longer(self._given, seen)
        return Reply(
            seen.content[len(given.content) :],
            seen.reasoning[len(given.reasoning) :],
            seen.tool_calls[len(given.tool_calls) :],
        )


def parser_for(template: str) -> TagParser:
    """The parser a chat template asks for: the tags it prints itself."""
    hermes = OPEN_CALL in template and "<function=" not in template and "<arg_key>" not in template
    return TagParser(thinks=CLOSE_THINK in template, calls=hermes)


def _take_call(match: re.Match[str], calls: list[ToolCall]) -> str:
    """Collect a well-formed call; returns what stays in the content."""
    try:
        call = json.loads(match[1])
    except (ValueError, RecursionError):
        return match[0]
    arguments = _arguments(call)
    if arguments is None:
        return match[0]
    calls.append(ToolCall(call["name"], arguments))
    return ""


def _arguments(call: Any) -> str | None:
    """The arguments of a call as JSON text; None when this is no call."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if not isinstance(arguments, dict) or not call["name"] or not is_unicode(call["name"]):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(arguments)


def _hold_back(text: str, tag: str) -> str:
    """`text` without an ending that may be the beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    size = next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
    return text[: len(text) - size]


def _longer(given: Reply, seen: Reply) -> Reply:
    return Reply(
        max(given.content, seen.content, key=len),
        max(given.reasoning, seen.reasoning, key=len),
        max(given.tool_calls, seen.tool_calls, key=len),
    )
