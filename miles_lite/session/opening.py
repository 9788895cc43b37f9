"""What a session may be opened with: the run's sampling parameters, and turns that another session told.

Invariant: turns that are taken are a forest like any session's, each with its very ids; everything else raises ApiError
400, which names the field.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

from miles_lite.process.json_types import Json, JsonMapping
from miles_lite.session.dialects.chat_body import ChatMessage
from miles_lite.session.dialects.typed_json import NotNegative, Struct, read
from miles_lite.session.engine.sampling import RunSampling
from miles_lite.session.errors import bad_request
from miles_lite.session.history.agent_identity import Caller
from miles_lite.session.history.turn_record import Output, pack_spans, pack_tokens
from miles_lite.session.journal.row import Entry, Receipt

Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Logprob = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class ToldTurn(Struct):
    """One of what GET /sessions/ID/turns lists."""

    turn: Number
    messages: list[ChatMessage]
    reply: ChatMessage
    prompt_ids: list[Id]
    output_ids: list[Id]
    output_logprobs: list[Logprob]
    parent: Number | None = None
    drop: Number = 0
    temperature: NotNegative = 1.0
    finish_reason: str = "stop"
    weight_versions: list[tuple[Number, Number, Number]] = msgspec.field(default_factory=list)


class Opening(Struct):
    """The body of POST /sessions. `turns`: the session goes on from these, whose tokens stay as they are."""

    sampling: RunSampling | None = None
    turns: list[ToldTurn] | None = None


def parse_turns(given: Json, *, caller: Caller, stop_ids: frozenset[int]) -> list[Entry]:
    """The `turns` of a body, said by `caller`. Raises ApiError 400."""
    turns = read({"turns": given}, Opening).turns or []
    entries = []
    for number, (turn, told) in enumerate(zip(turns, given or (), strict=True)):
        _check(turn, turns[:number], f"turns[{number}]")
        entries.append(_entry(turn, told, caller, stop_ids))
    return entries


def _check(turn: ToldTurn, before: Sequence[ToldTurn], where: str) -> None:
    if turn.turn != len(before):
        raise bad_request(f"{where}.turn must be {len(before)}: turns come in their order", param=f"{where}.turn")
    if turn.parent is not None and turn.parent >= turn.turn:
        raise bad_request(f"{where}.parent must be a turn before it", param=f"{where}.parent")
    if len(turn.output_ids) != len(turn.output_logprobs):
        raise bad_request(f"{where}: output_logprobs are not as many as output_ids", param=f"{where}.output_logprobs")
    if turn.drop > (0 if turn.parent is None else len(before[turn.parent].output_ids)):
        raise bad_request(f"{where}.drop is more than the turn before has sampled", param=f"{where}.drop")
    if any(not start <= end <= len(turn.output_ids) for _, start, end in turn.weight_versions):
        raise bad_request(f"{where}.weight_versions go beyond output_ids", param=f"{where}.weight_versions")
    if turn.reply.role != "assistant":
        raise bad_request(f"{where}.reply must be the assistant's", param=f"{where}.reply.role")
    if turn.parent is None and not turn.messages:
        raise bad_request(f"{where}.messages is empty, and no turn is before it", param=f"{where}.messages")


def _entry(turn: ToldTurn, told: JsonMapping, caller: Caller, stop_ids: frozenset[int]) -> Entry:
    """Its messages as they came: what a conversation that goes on replays."""
    ended = turn.output_ids[-1] if turn.output_ids and turn.finish_reason == "stop" else None
    now = time.time()
    return Entry(
        parent=turn.parent,
        caller=caller,
        root=("diverged" if turn.turn else "first") if turn.parent is None else None,
        messages=tuple(told["messages"]),
        reply=told["reply"],
        prompt_ids=np.array(turn.prompt_ids, np.int32),
        drop=turn.drop,
        output=Output(
            token_bytes=pack_tokens(turn.output_ids, turn.output_logprobs),
            span_bytes=pack_spans(turn.weight_versions),
            finish_reason=turn.finish_reason,
            stop=ended if ended in stop_ids else None,
            started=now,
            finished=now,
            params={"temperature": turn.temperature},
        ),
        receipt=Receipt(identity=b"", answer_id="", created=int(now), cached_tokens=0, stop_sequence=None),
    )
