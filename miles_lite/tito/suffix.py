"""The anchor method: what a chat template appends after an assistant turn, without knowing the template.

Put an anchor at the end of the last assistant turn, render with and without the appended messages, cut both after the
anchor. What the shorter render has left is the `tail` that closes the turn; what the longer one has beyond the tail is
the suffix. A template that rewrites history does so before the anchor and cannot touch the suffix.

Invariant: a suffix depends on the messages given and nothing else; where the two renders disagree, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miles_lite.tito.messages import Message, Tools
from miles_lite.tito.render import Renderer


class SuffixError(ValueError):
    """The template's renders do not give a suffix; the text names what disagrees."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What follows the anchor. `alias` holds the two stop tokens of a template that closes a last turn differently."""

    tail: str
    suffix: str
    alias: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Join:
    """How a plain assistant turn is closed: `closing` is all the template prints, `stop` its control token or None.

    stop is None when the template prints nothing that stops: the next turn's opener is the stop token (GLM).
    """

    closing: str
    stop: str | None
    alias: tuple[str, str] | None = None

    def glue(self, ended_by: str | None, suffix: str, control: re.Pattern[str]) -> tuple[int, str]:
        """(sampled tokens to drop, text to append) after a turn that ended by sampling `ended_by`, or by none."""
        if ended_by is None:
            return 0, self.closing + suffix
        if self.stop is None:
            opener = control.match(suffix)
            same = opener is not None and opener[0] == ended_by
            return (0, suffix[len(ended_by) :]) if same else (1, suffix)
        if ended_by == self.stop or (self.alias is not None and ended_by in self.alias):
            return 0, self.closing.partition(self.stop)[2] + suffix
        return 1, self.closing + suffix


def cut(
    renderer: Renderer,
    history: Sequence[Message],
    appended: Sequence[Message],
    *,
    tools: Tools | None,
    options: Mapping[str, Any],
    control: re.Pattern[str],
) -> Cut:
    """Tail and suffix of `appended` after `history`, whose last message is an assistant's.

    Raises SuffixError, RenderError.
    """
    for attempt in range(8):
        anchor = f"Zq{attempt}anchor{attempt}qZ"
        anchored = [*history[:-1], with_anchor(history[-1], anchor)]
        short = renderer.render(anchored, tools=tools, open_turn=False, options=options)
        long = renderer.render([*anchored, *appended], tools=tools, open_turn=True, options=options)
        if short.count(anchor) == long.count(anchor) == 1:
            return _split(short.partition(anchor)[2], long.partition(anchor)[2], control)
    raise SuffixError("anchor: the template does not print the end of an assistant turn exactly once")


def with_anchor(message: Message, anchor: str) -> dict[str, Any]:
    """The assistant message ending in `anchor`: in a further argument of its last call, else in its content."""
    calls = message.get("tool_calls")
    if not calls:
        return {**message, "content": message.get("content", "") + anchor}
    last = calls[-1]
    arguments = last["function"].get("arguments")
    arguments = {**(arguments if isinstance(arguments, dict) else {}), "zz_anchor": anchor}
    return {**message, "tool_calls": [*calls[:-1], {**last, "function": {**last["function"], "arguments": arguments}}]}


def _split(tail: str, rest: str, control: re.Pattern[str]) -> Cut:
    if rest.startswith(tail):
        return Cut(tail, rest[len(tail) :])
    last, further = control.match(tail), control.match(rest)
    if last and further and rest[further.end() :].startswith(tail[last.end() :]):
        return Cut(tail, rest[further.end() + len(tail) - last.end() :], alias=(last[0], further[0]))
    raise SuffixError("tail: the template closes an assistant turn differently when messages follow it")
