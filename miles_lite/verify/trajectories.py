"""Conversations that harnesses have, by their shape: s system, u user, a assistant, t tool result.

Invariant: an assistant message makes as many calls as tool results come before the next one, and every text is unique.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from miles_lite.config.choices import Word
from miles_lite.process.json_types import JsonObject

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
SHAPES = {
    "single_tool": "suat",
    "multi_turn": "suatat",
    "multi_tool_single_turn": "suatt",
    "parallel_tools": "suattt",
    "long_chain": "suatatat",
    "multi_user_tool_chain": "suatauatat",
    "retry_system": "suatsat",
    "intermediate_system": "suatsatsat",
    "simple_no_tool": "suasua",
    "multi_turn_no_tool": "suau",
    "multi_role_sequence": "suatuasta",
}
THINKING_SHAPES = {
    "single_tool_thinking": "suatuatua",
    "multi_turn_thinking": "suatat",
    "long_chain_thinking": "suatatat",
    "multi_user_turn_thinking": "suatauat",
    "intermediate_system_thinking": "suatsatsat",
    "multi_turn_no_tool_thinking": "suau",
}


class Thinking(Word):
    """Which trajectories: those without reasoning, those with it, or all."""

    OFF = "off"
    ON = "on"
    BOTH = "both"


def _tool(name: str, description: str, *fields: str) -> JsonObject:
    properties = {field: {"type": "string"} for field in fields}
    parameters = {"type": "object", "properties": properties, "required": [fields[0]]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    _tool("get_weather", "The weather in a city.", "city", "unit"),
    _tool("get_date", "The date in a time zone.", "timezone"),
]


@dataclass(frozen=True, slots=True)
class Case:
    """`messages[position:]` are appended after an assistant turn; `thinking`: assistants reason."""

    name: str
    messages: list[JsonObject]
    position: int
    thinking: bool

    @property
    def tools(self) -> list[JsonObject] | None:
        return TOOLS if any(message["role"] == "tool" for message in self.messages) else None

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role appended after the first assistant turn, in order of appearance."""
        said = [message["role"] for message in self.messages]
        return tuple(dict.fromkeys(role for role in said[said.index("assistant") :] if role != "assistant"))

    def without_system(self) -> Case:
        """The same, for a template that takes no system message at the beginning."""
        begun = self.messages[0]["role"] == "system"
        return replace(self, messages=self.messages[begun:], position=self.position - begun)


def cases(thinking: Thinking) -> Iterator[Case]:
    """Each trajectory at each of its boundaries: an assistant turn that other messages follow."""
    plain = SHAPES if thinking != Thinking.ON else {}
    chosen = plain | (THINKING_SHAPES if thinking != Thinking.OFF else {})
    for name, shape in chosen.items():
        messages = conversation(shape, thinking=name in THINKING_SHAPES)
        for position in boundaries(shape):
            end = next((n for n in range(position, len(shape)) if shape[n] == "a"), len(shape))
            yield Case(name, messages[:end], position, name in THINKING_SHAPES)


def boundaries(shape: str) -> list[int]:
    """Where something other than an assistant turn follows one."""
    return [n for n in range(1, len(shape)) if shape[n - 1] == "a" and shape[n] != "a"]


def conversation(shape: str, *, thinking: bool) -> list[JsonObject]:
    """The messages of a shape. Of the assistant turns that call tools, every second says something as well."""
    messages: list[JsonObject] = []
    pending: list[JsonObject] = []
    for place, letter in enumerate(shape):
        message: JsonObject = {"role": ROLES[letter], "content": f"{ROLES[letter].title()} says {place}."}
        if letter == "t":
            call = pending.pop(0)
            message |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
        if letter == "a":
            count = shape[place + 1 :].partition("a")[0].count("t")
            pending = [_call(place, number) for number in range(count)]
            message |= {"tool_calls": list(pending)} if pending else {}
            message |= {"content": ""} if pending and place % 4 == 2 else {}
            message |= {"reasoning_content": f"Because of {place}."} if thinking else {}
        messages.append(message)
    return messages


def _call(place: int, number: int) -> JsonObject:
    names = ("get_weather", {"city": f"City{place}{number}", "unit": "C"}), ("get_date", {"timezone": f"UTC+{place}"})
    name, arguments = names[number % 2]
    return {
        "id": f"call{place:03}{number:02}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
