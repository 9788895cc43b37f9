"""How a model and its host write to each other: the system prompt, calls in replies, results in messages.

Invariant: formats hold no state; the same tools give the same system prompt, whatever the order of keys in their file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Protocol

from miles_lite.agent.scan import Answer, Call, read_reply
from miles_lite.agent.tools import Tool
from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonMapping, JsonObject, parsed
from miles_lite.sandboxes.shell import Outcome

PREAMBLE = "You are an agent that uses tools to do what the user asks."
PORTABLE = (
    'To use a tool, reply with one JSON object and nothing else: {"tool": "NAME", "arguments": {...}}\n'
    'Its result comes back as JSON. When you are done, reply: {"answer": "TEXT"}'
)
NATIVE = "Call tools in your own format. A tool's result comes back as JSON. When you are done, answer in plain text."
SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""mini-swe-agent's end of a task: the first line of a command's output. What follows it is the answer."""
_BLOCK = re.compile(r"```bash\s*\n(.*?)\n```", re.DOTALL)


class Format(Protocol):
    """One way of writing calls and results. `shows_tools`: the chat template gets the tools. `one_object`: a reply is
    over with its first JSON object."""

    shows_tools: bool
    one_object: bool

    def system(self, tools: Sequence[Tool], preamble: str) -> str:
        """The system prompt. Raises UserError for tools that the format cannot call."""

    def read(self, message: JsonMapping) -> list[Call] | Answer:
        """What a reply means."""

    def result(self, call: Call, outcome: Outcome) -> JsonObject:
        """The message that carries a result."""

    def final(self, outcome: Outcome) -> str | None:
        """The answer, where a result ends the turn."""


class JsonForms:
    """The portable JSON forms; with `native` also the model's own calls, which its chat template renders."""

    def __init__(self, *, native: bool) -> None:
        self.shows_tools, self.one_object = native, not native

    def system(self, tools: Sequence[Tool], preamble: str) -> str:
        lines = "\n".join(tool.line() for tool in tools)
        return f"{preamble}\n\nTools:\n{lines}\n\n{NATIVE if self.shows_tools else PORTABLE}"

    def read(self, message: JsonMapping) -> list[Call] | Answer:
        if calls := _native_calls(message):
            return calls
        reply = read_reply(message.get("content") or "")
        return reply if isinstance(reply, Answer) else [reply]

    def result(self, call: Call, outcome: Outcome) -> JsonObject:
        answering = {"role": "tool", "tool_call_id": call.call_id} if call.call_id else {"role": "user"}
        return {**answering, "content": json.dumps({"tool": call.tool} | _streams(outcome), ensure_ascii=False)}

    def final(self, outcome: Outcome) -> str | None:
        return None


class Bash:
    """A fenced bash block is a call of the tool `bash`, as mini-swe-agent has it. The system prompt is the preamble
    alone, so that a model hears what it was trained on."""

    shows_tools, one_object = False, False

    def system(self, tools: Sequence[Tool], preamble: str) -> str:
        if not any(tool.name == "bash" and tool.required == ["command"] for tool in tools):
            raise UserError("--tool-format bash needs a tool called bash whose required argument is command")
        return preamble

    def read(self, message: JsonMapping) -> list[Call] | Answer:
        text = message.get("content") or ""
        blocks = _BLOCK.findall(text)
        return [Call("bash", {"command": blocks[0]})] if blocks else Answer(text.strip(), fallback=True)

    def result(self, call: Call, outcome: Outcome) -> JsonObject:
        return {"role": "user", "content": f"exit {outcome.exit_code}\n{outcome.stdout}{outcome.stderr}"}

    def final(self, outcome: Outcome) -> str | None:
        first, _, rest = outcome.stdout.lstrip().partition("\n")
        return rest if first.strip() == SUBMIT and outcome.exit_code == 0 else None


FORMATS: dict[str, Format] = {"portable": JsonForms(native=False), "native": JsonForms(native=True), "bash": Bash()}


def _streams(outcome: Outcome) -> JsonObject:
    return {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.exit_code}


def _native_calls(message: JsonMapping) -> list[Call]:
    calls = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        said = parsed(function["arguments"])
        calls.append(Call(function["name"], function["arguments"] if said is None else said, call["id"]))
    return calls
