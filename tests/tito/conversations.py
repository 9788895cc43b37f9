"""Hypothesis strategies: conversations as harnesses hold them, cut where messages are appended after a turn.

Invariant: every content and the last argument of every call hold a word that occurs nowhere else in the conversation.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.tito.texts import hostile

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Does {name}.",
            "parameters": {"type": "object", "properties": {"note": {"type": "string"}, "deep": {"type": "object"}}},
        },
    }
    for name in ("run", "look_up", "ask")
]


@dataclass(frozen=True, slots=True)
class Step:
    """`appended` follows `history`, whose last message is an assistant's and ends in `word`."""

    history: list[dict[str, Any]]
    appended: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    word: str

    @property
    def roles(self) -> list[str]:
        return sorted({message["role"] for message in self.appended})


@st.composite
def steps(draw: st.DrawFn, *, text: st.SearchStrategy[str] = hostile, roles: tuple[str, ...]) -> list[Step]:
    """One conversation, cut after each of its assistant turns; only `roles` are appended."""
    words = (f"w{number}ord" for number in itertools.count())
    say = _Speaker(draw, text, words)
    tools = draw(st.sampled_from([None, TOOLS, TOOLS[:1]]))
    messages = [say("system")] if draw(st.booleans()) else []
    messages.append(say("user"))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        calls = draw(st.integers(0, 3)) if tools and "tool" in roles else 0
        turn, word = say.turn(calls, tools)
        appended = [say("tool", tool_call_id=call["id"], name=_name(call)) for call in turn.get("tool_calls", ())]
        appended += [say.inserted(role) for role in draw(st.sampled_from(_follow_ups(roles, needed=not calls)))]
        found.append(Step([*messages, turn], appended, tools, word))
        messages += [turn, *appended]
        if tools and draw(st.booleans()):
            tools = draw(st.sampled_from([TOOLS, TOOLS[:2]]))
    return found


def _follow_ups(roles: tuple[str, ...], *, needed: bool) -> list[tuple[str, ...]]:
    """What a harness may append besides tool results."""
    rounds = [("user",), ("system",), ("system", "user"), ("assistant", "user"), ("assistant", "assistant", "user")]
    allowed = [each for each in rounds if set(each) <= set(roles)]
    return allowed if needed and allowed else [(), *allowed]


def _name(call: dict[str, Any]) -> str:
    return str(call["function"]["name"])


class _Speaker:
    def __init__(self, draw: Callable[..., Any], text: st.SearchStrategy[str], words: Iterator[str]) -> None:
        self._draw, self._text, self._words = draw, text, words

    def __call__(self, role: str, **more: Any) -> dict[str, Any]:
        content: Any = self._draw(self._text) + next(self._words) + self._draw(self._text)
        if role != "assistant" and self._draw(st.integers(0, 4)) == 0:
            content = [{"type": "text", "text": content[:3]}, {"type": "text", "text": content[3:]}]
        return {"role": role, "content": content, **more}

    def inserted(self, role: str) -> dict[str, Any]:
        """A message of the harness; one that it writes in the assistant's name may hold reasoning."""
        if role == "assistant" and self._draw(st.booleans()):
            return self(role, reasoning_content=next(self._words))
        return self(role)

    def turn(self, calls: int, tools: list[dict[str, Any]] | None) -> tuple[dict[str, Any], str]:
        """An assistant's message and the word near its end."""
        word = next(self._words)
        message: dict[str, Any] = {"role": "assistant", "content": word}
        if calls:
            said = [None, "", next(self._words)]
            message["content"] = self._draw(st.sampled_from(said))
            message["tool_calls"] = [self._call(tools or []) for _ in range(calls - 1)] + [
                self._call(tools or [], word)
            ]
        if self._draw(st.booleans()):
            message["reasoning_content"] = next(self._words) + self._draw(self._text)
        return message, word

    def _call(self, tools: list[dict[str, Any]], word: str = "") -> dict[str, Any]:
        name = self._draw(st.sampled_from(tools))["function"]["name"]
        arguments: Any = {"deep": {self._draw(self._text): [1, None, 0.5]}, "note": self._draw(self._text) + word}
        if self._draw(st.booleans()):
            arguments = json.dumps(arguments)
        identity = self._draw(st.sampled_from([f"call_{next(self._words)}", f"functions.{name}:{next(self._words)}"]))
        return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
