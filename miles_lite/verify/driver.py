"""A harness that uses every way of appending to a session: results, follow-ups, reminders, rollbacks, inserted turns.

Invariant: replies are sent back as they came; what was done is counted when it was answered, not when it was planned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from miles_lite.config.choices import Word
from miles_lite.process.json_types import JsonObject
from miles_lite.verify.plan import Action
from miles_lite.verify.trajectories import TOOLS

MAX_ROLLBACKS = 3
"""Consecutive replies without a tool call that mode `rollback` takes back before it gives up."""

Message = JsonObject
Complete = Callable[[Sequence[Message], str], Awaitable[Message]]
"""(messages, tool_choice) -> the reply."""

PROMPT: tuple[Message, ...] = (
    {"role": "system", "content": "You are a weather assistant. Call a tool for every question."},
    {"role": "user", "content": "What is the weather in Paris?"},
)
FOLLOWUPS = ("And what is it in Rome?", "And in Oslo?", "And in Cairo?")


class NoToolCall(Exception):
    """The model was to call a tool and did not, for good."""


class FailureMode(Word):
    """What is done about a reply that calls no tool, where one was to."""

    ROLLBACK = "rollback"
    APPEND_TOOL = "append_tool"
    APPEND_USER = "append_user"


@dataclass(slots=True)
class Driver:
    """One conversation. `events` counts append_<role> and rollback; `notify` is told of every action."""

    complete: Complete
    failure_mode: FailureMode
    notify: Callable[[str], None] = lambda line: None
    messages: list[Message] = field(default_factory=lambda: [dict(message) for message in PROMPT])
    events: Counter[str] = field(default_factory=Counter)

    async def run(self, actions: Sequence[Action]) -> None:
        """Ask once, then take every action. Raises NoToolCall, and what `complete` raises."""
        await self._ask("start", [])
        for action in actions:
            if action is Action.TOOL_RESULT:
                await self._tool_result()
            elif action is Action.ROLLBACK:
                await self._rollback("R rollback")
            else:
                choice = "none" if action is Action.FORCE_FINAL else "auto"
                await self._ask(f"{action.value} {action.name.lower()}", self._words(action), choice)

    async def _tool_result(self) -> None:
        """Results of the last reply's calls; without a call, what the failure mode says."""
        tries = 0
        while not self._pending():
            if self.failure_mode == FailureMode.APPEND_USER:
                return await self._ask("T no call: append_user", [_user("Call a tool, please.")])
            if self.failure_mode == FailureMode.APPEND_TOOL:
                made_up = {"role": "tool", "tool_call_id": "call_none", "name": "get_weather", "content": "unknown"}
                return await self._ask("T no call: append_tool", [made_up])
            if tries == MAX_ROLLBACKS:
                raise NoToolCall(f"no tool call in {MAX_ROLLBACKS + 1} replies: {_short(self.messages[-1])}")
            tries += 1
            await self._rollback(f"T no call: rollback {tries} of {MAX_ROLLBACKS}")
        return await self._ask("T tool_result", self._results())

    async def _rollback(self, label: str) -> None:
        self.messages.pop()
        await self._ask(label, [])
        self.events["rollback"] += 1

    async def _ask(self, label: str, appended: Sequence[Message], tool_choice: str = "auto") -> None:
        self.messages += appended
        reply = await self.complete(self.messages, tool_choice)
        self.messages.append(reply)
        self.events.update(f"append_{message['role']}" for message in appended)
        self.notify(f"{label}: {_short(reply)}")

    def _words(self, action: Action) -> list[Message]:
        """What an action appends; calls that still wait for their results get them first."""
        asked = self.events["append_user"]
        said = {
            Action.USER_FOLLOWUP: [_user(FOLLOWUPS[asked % len(FOLLOWUPS)])],
            Action.SYSTEM_REMINDER: [{"role": "system", "content": "Remember: call a tool."}],
            Action.FORCE_FINAL: [_user("Answer in words, call no tool.")],
            Action.ASSISTANT_INPUT: [
                {"role": "assistant", "content": "Plan: compare the cities."},
                {"role": "assistant", "content": "Check: the plan is sound."},
                _user("Say it in words."),
            ],
        }
        return [*self._results(), *said[action]]

    def _results(self) -> list[Message]:
        return [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "name": call["function"]["name"],
                "content": _result(call["function"]),
            }
            for call in self._pending()
        ]

    def _pending(self) -> list[Message]:
        return list(self.messages[-1].get("tool_calls") or [])


def _result(function: Message) -> str:
    """A tool's answer: a function of the call alone."""
    arguments = json.dumps(function["arguments"], sort_keys=True)
    return "21 C, sunny" if function["name"] == TOOLS[0]["function"]["name"] else f"Saturday ({len(arguments)})"


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _short(reply: Message) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in reply.get("tool_calls") or []]
    text = ", ".join(calls) or repr(reply.get("content") or "")
    return text if len(text) <= 80 else text[:77] + "..."
