"""A turn with what its answer has beyond it, before it is committed: what the journal keeps.

Invariant: `from_row(to_row(entry))` commits to an equal turn, and with that turn its receipt gives the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from miles_lite.session.dialects import Stamp
from miles_lite.session.history.agent_identity import Caller, Hints
from miles_lite.session.history.tree import Place, Tree
from miles_lite.session.history.turn_record import Output, Turn, pack_ids, pack_spans, sampling
from miles_lite.tito.chat_messages import Message

Row = tuple[Any, ...]
"""(parent, dropped, caller, prompt, output, logprobs, experts, messages, facts): arrays as bytes, the last two JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer has beyond its turn. `identity` is that of the request, `constrained` what it had to be (see
    `ChatRequest`). `instructed`: the first message of the turn's path held for this request alone.
    """

    identity: bytes
    answer_id: str
    created: int
    cached_tokens: int
    stop_sequence: str | None
    instructed: bool = False
    constrained: str = ""

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.answer_id, self.created)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A turn to commit. `counts` are what it adds to the session's counters."""

    parent: int | None
    caller: Caller
    root: str | None
    messages: tuple[Message, ...]
    reply: Message
    prompt_ids: np.ndarray
    drop: int
    output: Output
    receipt: Receipt
    retries: int | None = None
    hints: Hints = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def commit(self, tree: Tree) -> Turn:
        parent = None if self.parent is None else tree.turns[self.parent]
        return tree.commit(
            Place(parent, 0, self.caller, self.root),
            self.messages,
            reply=self.reply,
            prompt_ids=self.prompt_ids,
            drop=self.drop,
            output=self.output,
            retries=self.retries,
            hints=self.hints,
        )


def to_row(entry: Entry) -> Row:
    output, receipt = entry.output, entry.receipt
    facts = {
        "agent": entry.caller.name,
        "root": entry.root,
        "retries": entry.retries,
        "hints": entry.hints,
        "spans": output.spans,
        "finish_reason": output.finish_reason,
        "stop": output.stop,
        "started": output.started,
        "finished": output.finished,
        "prefill": output.prefill,
        "identity": receipt.identity.hex(),
        "answer_id": receipt.answer_id,
        "created": receipt.created,
        "cached_tokens": receipt.cached_tokens,
        "stop_sequence": receipt.stop_sequence,
        "instructed": receipt.instructed,
        "constrained": receipt.constrained,
        "counts": entry.counts,
        "params": sampling(output),
        "experts": None if output.experts is None else [output.experts.dtype.name, *output.experts.shape],
    }
    return (
        entry.parent,
        entry.drop,
        entry.caller.seed,
        pack_ids(entry.prompt_ids),
        output.ids.tobytes(),
        output.logprobs.tobytes(),
        None if output.experts is None else np.ascontiguousarray(output.experts).tobytes(),
        orjson.dumps([entry.messages, entry.reply]),
        orjson.dumps(facts),
    )


def from_row(row: Sequence[Any]) -> Entry:
    parent, drop, seed, prompt, ids, logprobs, experts, messages, facts = row
    said, reply = orjson.loads(messages)
    known = orjson.loads(facts)
    output = Output(
        token_bytes=ids + logprobs,
        span_bytes=pack_spans(known["spans"]),
        finish_reason=known["finish_reason"],
        stop=known["stop"],
        started=known["started"],
        finished=known["finished"],
        limit=known["params"].pop("max_new_tokens", None),
        params=known["params"],
        experts=_experts(experts, known["experts"]),
        prefill=known.get("prefill"),
    )
    receipt = Receipt(
        identity=bytes.fromhex(known["identity"]),
        answer_id=known["answer_id"],
        created=known["created"],
        cached_tokens=known["cached_tokens"],
        stop_sequence=known["stop_sequence"],
        instructed=known.get("instructed", False),
        constrained=known.get("constrained", ""),
    )
    return Entry(
        parent=parent,
        caller=Caller(known["agent"], seed),
        root=known["root"],
        messages=tuple(said),
        reply=reply,
        prompt_ids=np.frombuffer(prompt, "<i4"),
        drop=drop,
        output=output,
        receipt=receipt,
        retries=known.get("retries"),
        hints=tuple((name, value) for name, value in known.get("hints", ())),
        counts=known["counts"],
    )


def _experts(data: bytes | None, shape: Sequence[Any] | None) -> np.ndarray | None:
    if data is None or shape is None:
        return None
    kind, *sizes = shape
    return np.frombuffer(data, kind).reshape(sizes)
