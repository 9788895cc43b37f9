"""One request and its answer, in no dialect: what wire formats are read into and written from.

Invariant: messages have the shape of OpenAI chat messages, and `body` holds sampling fields under their chat names,
whatever the client spoke. The deltas of a stream, with what `rest` adds at its end, are the answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_hexdigest

from miles_lite.process.json_types import Json, JsonMapping, JsonObject
from miles_lite.tito.chat_messages import Message, Tools
from miles_lite.tito.parse import Reply, ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What a reply must be. `force`: it calls a tool, `only` this one; `schema`: its content is JSON of this schema.

    Without `parallel` it calls one tool at most.
    """

    force: bool = False
    only: str | None = None
    parallel: bool = True
    schema: JsonMapping | None = None


_FREE = Constraint()
JSON_OBJECT = "json_object"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A checked request. `options` are chat_template_kwargs; `body` has model and sampling fields under chat names.

    `agent` is the name the agent gave, if it gave one, `hints` what else its harness said about it.
    `tools` are what the prompt shows, `callable_tools` what a reply may call: none when tool_choice says so.
    Of `n` answers that were asked for this is about the one with the index `choice`.
    `messages` follow the answer with the id `after`; they are the whole conversation when it is None. `instructed`: the
    first of them holds for this request alone. `form` is what the dialect itself needs to answer in the form that was
    asked for. `prefilled`: they end in the answer's beginning. `unknown` are the paths of fields that nobody knows.
    """

    messages: list[Message]
    tools: Tools | None
    callable_tools: Tools | None
    options: JsonMapping
    stream: bool
    logprobs: bool
    body: JsonMapping
    constraint: Constraint = Constraint()
    include_usage: bool = False
    agent: str | None = None
    n: int = 1
    choice: int = 0
    form: Json = None
    after: str | None = None
    instructed: bool = False
    prefilled: bool = False
    unknown: tuple[str, ...] = ()
    hints: tuple[tuple[str, str], ...] = ()

    @property
    def constrained(self) -> str:
        """A digest of what its answer must be and is read as, beyond what the engine is told; empty for no more."""
        muted = self.tools is not None and self.callable_tools is None
        return xxh3_64_hexdigest(repr((self.constraint, muted)).encode()) if muted or self.constraint != _FREE else ""

    @property
    def stops_at_object(self) -> bool:
        """Whether sampling stops where the reply's first JSON object is complete."""
        return self.body.get("stop_at") == JSON_OBJECT

    @property
    def model(self) -> str:
        return str(self.body.get("model") or "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """A finished turn. `logprobs` are (text, natural-log probability) per sampled token.

    `stop_sequence` ended the turn, if one did.
    """

    answer_id: str
    created: int
    model: str
    message: JsonObject
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    logprobs: Sequence[tuple[str, float]] | None
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a reply: reasoning, then content, then whole tool calls in chat shape."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[JsonMapping, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


def message_of(reply: Reply) -> JsonObject:
    """A whole reply as an assistant message; calls that the model gave no id get one."""
    message: JsonObject = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["content"] = reply.content or None
        message["tool_calls"] = list(map(_call, reply.tool_calls))
    return message


def ends_in_reply(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends in the assistant's words."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def whole(answer: ChatAnswer) -> Delta:
    """All that the answer says."""
    message = answer.message
    calls = tuple(message.get("tool_calls") or ())
    return Delta(message.get("reasoning_content") or "", message["content"] or "", calls)


def rest(answer: ChatAnswer, said: Sequence[Delta]) -> Delta:
    """What of the answer is still to be said. What was said is its beginning, and holds no calls."""
    everything = whole(answer)
    reasoning = _after("".join(delta.reasoning for delta in said), everything.reasoning)
    content = _after("".join(delta.content for delta in said), everything.content)
    return Delta(reasoning, content, everything.calls)


def _after(said: str, text: str) -> str:
    assert text.startswith(said), f"{said!r} was said, and the answer is {text!r}"
    return text[len(said) :]


def _call(call: ToolCall) -> JsonObject:
    call_id = call.id or f"call_{uuid.uuid4().hex[:24]}"
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
