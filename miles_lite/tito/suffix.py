"""The anchor method: what a chat template appends after an assistant turn, without knowing the template.

Put an anchor at the end of the last assistant turn, render with and without the appended messages, cut both after the
anchor. What the shorter render has left is the `tail` that closes the turn; what the longer one has beyond the tail is
the suffix. A template that rewrites history does so before the anchor and cannot touch the suffix.

Invariant: a suffix depends on the messages given and nothing else; where the two renders disagree, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.render import Renderer

Rest = Callable[[Sequence[Message], str], tuple[str, int]]
"""(messages, anchor) -> what the template prints after the first anchor, and how many anchors it prints."""


class SuffixError(ValueError):
    """The template's renders do not give a suffix; the text names what disagrees."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What follows the anchor.

    `alias` holds the two stop tokens of a template that closes a last turn by another (gpt-oss): last, amid.
    """

    tail: str
    suffix: str
    alias: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """How an assistant turn is closed: `closing` is all the template prints, `stop` its control token or None.

    stop is None when the template prints nothing that stops: the next turn's opener is the stop token (GLM).
    """

    closing: str
    stop: str | None
    alias: tuple[str, str] | None = None

    @classmethod
    def of(cls, found: Cut, control: re.Pattern[str]) -> Join:
        """The join of a plain turn, one without tool calls: its whole tail closes it, as amid a conversation."""
        if found.alias is not None:
            last, amid = found.alias
            return cls(amid + found.tail[len(last) :], amid, found.alias)
        stop = control.search(found.tail)
        return cls(found.tail, stop[0] if stop else None)

    def after(self, found: Cut, control: re.Pattern[str]) -> Join:
        """The join of a turn whose tail may begin with the end of a tool call (gpt-oss closes those by another token).

        Raises SuffixError when the tail neither closes as a plain turn does nor ends in a control token of its own.
        """
        if found.alias != self.alias and found.alias is not None:
            raise SuffixError(f"closes: {found.alias[1]!r} instead of {found.alias[0]!r} closes a turn")
        if found.alias is not None or found.tail.endswith(self.closing):
            return self
        last = next(iter(list(control.finditer(found.tail))[-1:]), None)
        if last is None or found.tail[last.end() :].strip():
            raise SuffixError(f"closes: a turn closes with {found.tail!r}, a plain one with {self.closing!r}")
        return Join(found.tail[last.start() :], last[0])

    def glue(self, ended_by: str | None, suffix: str, control: re.Pattern[str]) -> tuple[int, str]:
        """(sampled tokens to drop, text to append) after a turn that ended by sampling `ended_by`, or by none."""
        if ended_by is None:
            return 0, self.closing + suffix
        if self.stop is None:
            opener = control.match(suffix)
            same = opener is not None and opener[0] == ended_by
            return (0, suffix[len(ended_by) :]) if same else (1, suffix)
        if self.alias is not None and ended_by in self.alias:
            return 0, self.closing.partition(self.stop)[2] + suffix
        for match in control.finditer(self.closing):
            if match[0] == ended_by:
                return 0, self.closing[match.end() :] + suffix
        return 1, self.closing + suffix


def cut(
    renderer: Renderer,
    history: Sequence[Message],
    appended: Sequence[Message],
    *,
    tools: Tools | None,
    options: JsonMapping,
    control: re.Pattern[str],
    rest: Rest | None = None,
) -> Cut:
    """Tail and suffix of `appended` after `history`, whose last message is an assistant's.

    The anchor goes into the arguments of the last call that the template prints; without one, into the content. `rest`
    says what the template prints after an anchor when nothing is appended; without it the template is asked.
    Raises SuffixError, RenderError.
    """
    ask = rest or partial(rest_after, renderer, tools=tools, options=options)
    last = history[-1]
    calls = len(last.get("tool_calls") or ())
    for call in [*reversed(range(calls)), None]:
        for attempt in range(8):
            anchor = f"Zq{attempt}anchor{attempt}qZ"
            ends = in_content(last, anchor) if call is None else in_arguments(last, anchor, call=call)
            anchored = [*history[:-1], ends]
            tail, count = ask(anchored, anchor)
            if count == 0:
                break
            long = renderer.render([*anchored, *appended], tools=tools, open_turn=True, options=options)
            if count == long.count(anchor) == 1:
                return _split(tail, long.partition(anchor)[2], control)
    raise SuffixError("anchor: the template does not print the end of an assistant turn exactly once")


def rest_after(
    renderer: Renderer, anchored: Sequence[Message], anchor: str, *, tools: Tools | None, options: JsonMapping
) -> tuple[str, int]:
    """What follows the first `anchor` in the render, and how many there are. Raises RenderError."""
    text = renderer.render(anchored, tools=tools, open_turn=False, options=options)
    return text.partition(anchor)[2], text.count(anchor)


def in_content(message: Message, anchor: str) -> JsonObject:
    """The assistant message, its content ending in `anchor`."""
    content = message.get("content", "")
    if isinstance(content, str):
        return {**message, "content": content + anchor}
    *parts, last = content
    return {**message, "content": [*parts, {**last, "text": last["text"] + anchor}]}


def in_arguments(message: Message, anchor: str, *, call: int = -1) -> JsonObject:
    """The assistant message with `anchor` as a further, last argument of one of its calls, the last by default."""
    calls = list(message["tool_calls"])
    function = calls[call]["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.rstrip().endswith("}"):
        inside = arguments.rstrip()[:-1]
        comma = "" if inside.rstrip().endswith("{") else ", "
        anchored: Json = f'{inside}{comma}"zz_anchor": "{anchor}"}}'
    else:
        anchored = {**(arguments if isinstance(arguments, dict) else {}), "zz_anchor": anchor}
    calls[call] = {**calls[call], "function": {**function, "arguments": anchored}}
    return {**message, "tool_calls": calls}


def _split(tail: str, rest: str, control: re.Pattern[str]) -> Cut:
    if rest.startswith(tail):
        return Cut(tail, rest[len(tail) :])
    tokens = list(control.finditer(tail))
    further = control.match(rest)
    if len(tokens) > 1 and tokens[-1].end() == len(tail) and rest.startswith(tail[: tokens[-1].start()]):
        closing = tail[: tokens[-1].start()]  # the last token ends the document, not the turn (Phi-3)
        return Cut(closing, rest[len(closing) :])
    last = control.match(tail)
    if last and further and rest[further.end() :].startswith(tail[last.end() :]):
        return Cut(tail, rest[further.end() + len(tail) - last.end() :], alias=(last[0], further[0]))
    raise SuffixError("tail: the template closes an assistant turn differently when messages follow it")
