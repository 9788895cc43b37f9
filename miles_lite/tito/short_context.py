"""The short context: a conversation of two messages that ends like a long one, so that a turn costs what it adds.

Invariant: it depends on the names and ids of the last turn's tool calls and on nothing else. Verification compares it
with the real context; where the two give different suffixes it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Form, Message, text_as
from miles_lite.tito.render import Renderer
from miles_lite.tito.suffix import Rest, rest_after

_KEPT = 512


def short_history(last: Message, form: Form) -> list[JsonObject]:
    """A conversation as short as can be that ends like one whose last message is `last`, an assistant's."""
    reply: JsonObject = {"role": "assistant", "content": text_as("ok", form)}
    if calls := last.get("tool_calls"):
        reply["tool_calls"] = [_bare(call, form) for call in calls]
    return [{"role": "user", "content": text_as("hi", form)}, reply]


def _bare(call: JsonMapping, form: Form) -> JsonObject:
    """A tool call without its arguments."""
    function = {
        "name": (call.get("function") or {}).get("name"),
        "arguments": {} if form.arguments == "object" else "{}",
    }
    bare = {"id": call.get("id"), "type": call.get("type"), "function": function}
    return {key: value for key, value in bare.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ShortContexts:
    """What a template prints after the last turn of short contexts, kept: it is the same for every turn of a kind."""

    renderer: Renderer
    _rests: dict[tuple[Json, ...], tuple[str, int] | None] = field(default_factory=dict)

    def rest(self, *, options: JsonMapping, key: str) -> Rest:
        """For `suffix.cut` without tools; `key` stands for the options."""
        return partial(self._kept, partial(rest_after, self.renderer, tools=None, options=options), key)

    def _kept(self, ask: Rest, options: str, anchored: Sequence[Message], anchor: str) -> tuple[str, int]:
        last = anchored[-1]
        calls = tuple(str(call["function"]) for call in last.get("tool_calls", ()))
        key = (options, calls, str(last["content"]))
        if key not in self._rests:
            if len(self._rests) >= _KEPT:
                self._rests.clear()
            found = ask(anchored, anchor)
            same = not calls or ask([*anchored[:-1], _renamed(last)], anchor) == found
            self._rests[key] = found if same else None
        return self._rests[key] or ask(anchored, anchor)


def _renamed(message: Message) -> JsonObject:
    """The message with other ids for its calls: a template that prints them after the arguments shows it."""
    return {**message, "tool_calls": [{**call, "id": f"other{n:04}"} for n, call in enumerate(message["tool_calls"])]}
