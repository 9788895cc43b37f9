"""Harmony, the format of gpt-oss: a reply is messages in channels, of which SGLang's parsers read only some.

    [<|start|>assistant][ to=RECIPIENT]<|channel|>CHANNEL[ to=RECIPIENT][ <|constrain|>json]<|message|>BODY<|end|>

Analysis is reasoning, a message to `functions.NAME` calls that function, and all others are content. Templates and
models put the recipient before or after the channel. The stop token after a call is not part of what is read.

Invariant: what stands in no such message stays in the content. Content is certain from the final channel on; analysis
that comes later belongs to the content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from miles_lite.tito.chat_messages import Tools
from miles_lite.tito.parse import Marks, ToolCall
from miles_lite.tito.reasoning import hold_back

START, CHANNEL, MESSAGE = "<|start|>assistant", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_END = re.compile("|".join(map(re.escape, ENDS)))
_CHANNEL = re.compile(rf"{re.escape(CHANNEL)}\s*(\w+)")
_FUNCTION = re.compile(r"\bto=functions\.([^\s<]+)")


@dataclass(frozen=True, slots=True)
class _Said:
    """One message. `raw` is its text with header and end; `closed`: its end was written."""

    channel: str
    function: str | None
    body: str
    raw: str
    closed: bool

    @property
    def final(self) -> bool:
        return self.function is None and self.channel == "final"


@dataclass(frozen=True, slots=True)
class HarmonyReasoning:
    """Calls are left in the content, each in a frame of its own at its end, for HarmonyCalls to read."""

    name: str = "gpt-oss"

    def split(self, text: str, *, inside: bool) -> tuple[str, str]:
        said = list(_messages(text))
        reasoning, content = _parts(said)
        return reasoning, content + "".join(_frame(each) for each in said if each.function)

    def begun(self, text: str, *, inside: bool) -> tuple[str, str]:
        said = [each for each in _messages(text) if MESSAGE in each.raw]
        if said and not said[-1].closed:
            last = said[-1]
            said[-1] = _Said(last.channel, last.function, hold_back(last.body, *ENDS), last.raw, False)
        reasoning, content = _parts(said)
        return reasoning, content if any(each.final for each in said) else ""


_MARKS = Marks((START,))


@dataclass(frozen=True, slots=True)
class HarmonyCalls:
    """Calls in the frames that HarmonyReasoning makes."""

    name: str = "gpt-oss"
    marks: Marks = _MARKS

    def read(self, text: str, tools: Tools) -> tuple[str, tuple[ToolCall, ...]]:
        known = {tool["function"]["name"] for tool in tools}
        calls = tuple(ToolCall(each.function, each.body.strip() or "{}") for each in _messages(text) if each.function)
        good = all(call.name in known and call.well_formed for call in calls)
        return ("", calls) if calls and good else (text, ())


def _frame(call: _Said) -> str:
    return f"{START} to=functions.{call.function}{CHANNEL}commentary{MESSAGE}{call.body}"


def _parts(said: list[_Said]) -> tuple[str, str]:
    """(reasoning, content) of messages, calls left out."""
    final = next((place for place, each in enumerate(said) if each.final), len(said))
    thought = [each.body for each in said[:final] if each.channel == "analysis" and not each.function]
    told = [each for place, each in enumerate(said) if each.channel != "analysis" or place > final]
    return "\n".join(filter(None, thought)), "\n".join(each.body for each in told if each.body and not each.function)


def _messages(text: str) -> Iterator[_Said]:
    """The messages of a text; what is none has an empty channel, and is its own body."""
    at = 0
    while at < len(text):
        begin = text.find(MESSAGE, at)
        header = text[at:begin].removeprefix(START) if begin >= 0 else ""
        channel, function = _CHANNEL.search(header), _FUNCTION.search(header)
        if begin < 0 or not header.lstrip().startswith((CHANNEL, "to=")) or channel is None:
            yield _Said("", None, text[at:], text[at:], closed=False)
            return
        body = begin + len(MESSAGE)
        end = _END.search(text, body)
        stop = end.start() if end else len(text)
        yield _Said(channel[1], function[1] if function else None, text[body:stop], text[at:stop], end is not None)
        at = stop if end is None or end[0] == "<|start|>" else end.end()
