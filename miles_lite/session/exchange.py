"""One request and its answer, in no dialect: what wire formats are read into and written from.

Invariant: messages have the shape of OpenAI chat messages, and `body` holds sampling fields under their chat names,
whatever the client spoke. The deltas of a stream, with what `rest` adds at its end, are the answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_hexdigest

from miles_lite.tito.messages import Message, Tools
from miles_lite.tito.parse import Reply, ReplyStream, ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What a reply must be. `force`: it calls a tool, `only` this one; `schema`: its content is JSON of this schema.

    Without `parallel` it calls one tool at most.
    """

    force: bool = False
    only: str | None = None
    parallel: bool = True
    schema: Mapping[str, Any] | None = None


_FREE = Constraint()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A checked request. `options` are chat_template_kwargs; `body` has model and sampling fields under chat names.

    `agent` is the name the agent gave, if it gave one, `hints` what else its harness said about it.
    `tools` are what the prompt shows, `callable_tools` what a reply may call: none when tool_choice says so.
    """

    messages: list[Message]
    tools: Tools | None
    callable_tools: Tools | None
    options: Mapping[str, Any]
    stream: bool
    logprobs: bool
    body: Mapping[str, Any]
    constraint: Constraint = Constraint()
    include_usage: bool = False
    agent: str | None = None
    hints: tuple[tuple[str, str], ...] = ()

    @property
    def form(self) -> str:
        """A digest of what its answer must be and is read as, beyond what the engine is told; empty for no more."""
        muted = self.tools is not None and self.callable_tools is None
        return xxh3_64_hexdigest(repr((self.constraint, muted)).encode()) if muted or self.constraint != _FREE else ""

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A finished turn. `logprobs` are (text, natural-log probability) per sampled token.

    The first `lead` characters of the content came before the tool calls. `stop_sequence` ended the turn, if one did.
    """

    answer_id: str
    created: int
    model: str
    message: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    logprobs: Sequence[tuple[str, float]] | None
    lead: int = 0
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply: reasoning, then content, then whole tool calls in chat shape."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


@dataclass(slots=True)
class Voice:
    """Speaks a reply while it grows: tool calls that the model gave no id get one when they are first heard."""

    stream: ReplyStream
    lead: int = 0
    ids: list[str] = field(default_factory=list)

    def feed(self, text: str) -> Delta:
        """What `text`, all that was written so far, adds."""
        new = self.stream.feed(text)
        self.lead += len(new.content)
        start = len(self.ids)
        self._name(new.tool_calls)
        calls = tuple(map(_call, self.ids[start:], new.tool_calls))
        return Delta(new.reasoning, new.content, calls)

    def message(self, reply: Reply) -> dict[str, Any]:
        """The whole reply as an assistant message."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            self._name(reply.tool_calls[len(self.ids) :])
            message["content"] = reply.content or None
            message["tool_calls"] = list(map(_call, self.ids, reply.tool_calls))
        return message

    def _name(self, calls: Sequence[ToolCall]) -> None:
        self.ids += [call.id or f"call_{uuid.uuid4().hex[:24]}" for call in calls]


def pieces(answer: ChatAnswer) -> list[Delta]:
    """The answer in the order of its blocks."""
    return rest(answer, reasoning=0, content=0, calls=0)


def rest(answer: ChatAnswer, *, reasoning: int, content: int, calls: int) -> list[Delta]:
    """What of the answer is still to be said after so many characters and calls."""
    text, made = answer.message["content"] or "", tuple(answer.message.get("tool_calls") or ())
    lead = max(answer.lead if made else len(text), content)
    said = Delta(
        (answer.message.get("reasoning_content") or "")[reasoning:],
        text[content:lead],
        made[calls:],
    )
    return [delta for delta in (said, Delta(content=text[lead:])) if delta]


def _call(call_id: str, call: ToolCall) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
