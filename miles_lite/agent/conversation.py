"""The conversation loop: the model speaks, the host runs the tools it asks for, until there is an answer.

Invariant: the messages sent are append-only, and what happened is in the events; a conversation whose context is full
says so and takes nothing more.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from miles_lite.agent.formats import FORMATS, PREAMBLE, Format
from miles_lite.agent.scan import Answer, Call
from miles_lite.agent.session_client import AgentSession, ContextFull
from miles_lite.agent.tools import Tool
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.sandboxes.shell import Outcome, Shell, clipped
from miles_lite.traces import atraj

REFUSED = 126
INVALID = 2
UNKNOWN_TOOL = 127

log = logging.getLogger(__name__)
Event = JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_steps` tool rounds per user turn, `max_tokens` new tokens per reply; None leaves those to the session."""

    max_steps: int = 8
    max_tokens: int | None = 256


@dataclass
class Conversation:
    """One session's conversation. `emit` gets every event; `confirm`, where given, is asked before each call."""

    session: AgentSession
    tools: Sequence[Tool]
    shell: Shell
    emit: Callable[[Event], None]
    limits: Limits = field(default_factory=Limits)
    preamble: str = PREAMBLE
    format: Format = FORMATS["portable"]
    confirm: Callable[[Call], bool] | None = None
    full: bool = False

    def __post_init__(self) -> None:
        system = self.format.system(self.tools, self.preamble)
        self._messages: list[JsonObject] = [{"role": "system", "content": system}]
        self._by_name = {tool.name: tool for tool in self.tools}
        self._calls: dict[int, Call] = {}
        self._results: dict[int, list[JsonObject]] = {}
        self._replies = 0
        self._sent = 0

    @property
    def started(self) -> bool:
        """Whether the model has replied."""
        return self._replies > 0

    def say(self, text: str) -> str | None:
        """One user turn; the answer, or None when there is none (the last event says why). Raises UserError."""
        text = text.encode(errors="replace").decode()
        self.emit({"type": "user", "text": text})
        self._messages.append({"role": "user", "content": text})
        try:
            return self._until_answer()
        except ContextFull as error:
            self.full = True
            self.emit({"type": "context_full", "text": f"the context is full: {error}"})
            return None

    def _until_answer(self) -> str | None:
        for step in range(self.limits.max_steps + 1):
            message = self._reply(step)
            read = self.format.read(message)
            if isinstance(read, Answer):
                if read.fallback:
                    log.info("step %d: neither a tool call nor an answer; the text is taken as the answer", step)
                return self._answered(read.text)
            if read[0].call_id is None:
                self._calls[self._replies - 1] = read[0]
            if step == self.limits.max_steps:
                break
            for call in read:
                outcome = self._run(call)
                if (answer := self.format.final(outcome)) is not None:
                    return self._answered(answer)
        limit = self.limits.max_steps
        self.emit({"type": "no_answer", "text": f"no answer after {limit} tool rounds (--max-steps)"})
        return None

    def _answered(self, text: str) -> str:
        self.emit({"type": "answer", "text": text})
        return text

    def _reply(self, step: int) -> JsonObject:
        tools = [tool.openai() for tool in self.tools] if self.format.shows_tools else ()
        message = self.session.chat(
            self._messages, max_tokens=self.limits.max_tokens, tools=tools, one_object=self.format.one_object
        )
        self._messages.append(message)
        self._replies, self._sent = self._replies + 1, len(self._messages)
        self.emit({"type": "assistant", "step": step, "raw": raw(message)})
        return message

    def _run(self, call: Call) -> Outcome:
        outcome = self._outcome(call)
        seconds = {"duration_sec": outcome.seconds}
        streams = {"stdout": outcome.stdout, "stderr": outcome.stderr, "exit_code": outcome.exit_code}
        called = {"type": "tool_call", "tool": call.tool, "arguments": call.arguments}
        self.emit(called | {"stdout": outcome.stdout, "exit_code": outcome.exit_code} | seconds)
        self.emit({"type": "tool_result", "tool": call.tool, **streams, **seconds})
        self._messages.append(self.format.result(call, outcome))
        self._results.setdefault(self._replies, []).append({"name": call.tool, **streams, **seconds})
        return outcome

    def _outcome(self, call: Call) -> Outcome:
        """Run one call. What is wrong with it goes back to the model as an outcome."""
        tool = self._by_name.get(call.tool)
        if tool is None:
            return Outcome(
                "", f"there is no tool {call.tool!r}; there are {', '.join(self._by_name)}", UNKNOWN_TOOL, 0.0
            )
        if problem := tool.problem(call.arguments):
            return Outcome("", f"invalid arguments: {problem}", INVALID, 0.0)
        if self.confirm is not None and not self.confirm(call):
            return Outcome("", "the user refused this call", REFUSED, 0.0)
        if tool.handler is None:
            return self.shell.run(tool.script(call.arguments))
        return _handle(tool.handler, call.arguments)

    def trajectory(self, *, task: str | None = None) -> atraj.Trajectory:
        """The conversation so far with its ids. What was never sent is in `metadata.unsent`."""
        unsent = self._messages[self._sent :]
        made = atraj.build(self.session.turns(), task=task, metadata={"unsent": unsent} if unsent else None)
        for turn, call in self._calls.items():
            step = next(step for step in made.data["steps"] if step["turn"] == turn and "output_ids" in step)
            step["tool_call"] = {"name": call.tool, "arguments_json": json.dumps(call.arguments)}
        for turn, results in self._results.items():
            steps = [step for step in made.data["steps"] if step["turn"] == turn and "input_ids" in step]
            for step, result in zip(steps, results, strict=False):  # a full context left them unsent
                step |= {"role": "tool", "sent_as": step["role"], "tool_result": result}
        return made


def raw(message: JsonMapping) -> str:
    """What the model wrote, as text: content, and native calls in their JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join([text for text in [message.get("content")] if text] + calls)


def _handle(handler: Callable[..., object], arguments: JsonMapping) -> Outcome:
    """Run a Python tool in this process; its result is stdout, an exception stderr."""
    began = time.monotonic()
    try:
        result = handler(**arguments)
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    except Exception as error:  # noqa: BLE001 - a tool may raise anything, and the model is told
        return Outcome("", clipped(f"{type(error).__name__}: {error}"), 1, time.monotonic() - began)
    return Outcome(clipped(text), "", 0, time.monotonic() - began)
