"""What engines generate, read: piece by piece while it grows, as the turn to commit, and as the answer to its request.

Invariant: reads only. What is told of a reply while it grows is the beginning of its answer, and a turn gives the same
answer whenever it is asked.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, Delta, message_of
from miles_lite.session.engine.engine_client import Generation, OnTokens
from miles_lite.session.engine.sampling import Sampling
from miles_lite.session.history.placing import Placed
from miles_lite.session.history.tree import Output, Turn, pack_spans, pack_tokens
from miles_lite.session.http.shared_request import Call, OnDelta
from miles_lite.session.journal.row import Entry, Receipt
from miles_lite.tito import ReplyStream, Tito
from miles_lite.tito.json_object import first_object
from miles_lite.tito.reasoning import hold_back

Enough = Callable[[np.ndarray], int | None]


@dataclass(frozen=True, slots=True)
class Prompt(Placed):
    """A request placed in the tree, how it is sampled, and `text`, the ids of its whole context as JSON."""

    sampling: Sampling
    text: bytes


class Reader:
    """Reads in one model's text."""

    def __init__(self, tito: Tito) -> None:
        self._tito = tito

    def watcher(self, request: ChatRequest, prompt: Prompt, on_delta: OnDelta) -> OnTokens:
        """Takes ids so far, tells what can be shown of them, and whether they suffice."""
        stream = self._tito.stream(tools=request.callable_tools, in_reasoning=prompt.suffix.opens_reasoning)
        return _watcher(self._tito, stream, on_delta, prompt.sampling.stop, self._enough(request, prompt))

    def entry(
        self,
        request: ChatRequest,
        prompt: Prompt,
        generation: Generation,
        *,
        started: float,
        call: Call,
        superseded: int | None = None,
    ) -> Entry:
        """The turn that a finished generation makes; `superseded` is the one whose place it takes."""
        stop, text = self._read(generation)
        in_reasoning = prompt.suffix.opens_reasoning
        reply = self._tito.parser.parse(text, tools=request.callable_tools, in_reasoning=in_reasoning)
        matched = generation.finish.get("matched")
        return Entry(
            parent=prompt.place.turn.number if prompt.place.turn else None,
            caller=prompt.place.caller,
            root=prompt.place.root,
            messages=tuple(request.messages[prompt.place.matched :]),
            reply=message_of(reply),
            prompt_ids=prompt.suffix.ids,
            drop=prompt.suffix.drop,
            retries=superseded,
            hints=request.hints,
            output=_output(prompt.sampling, generation, stop=stop, started=started),
            receipt=Receipt(
                identity=call.identity,
                answer_id=call.stamp.answer_id,
                created=call.stamp.created,
                cached_tokens=generation.cached_tokens,
                stop_sequence=matched if isinstance(matched, str) else None,
                instructed=request.instructed,
                constrained=request.constrained,
            ),
            counts=_counts_of(prompt, generation)
            | ({"unknown_fields": len(request.unknown)} if request.unknown else {}),
        )

    def told(self, request: ChatRequest, turn: Turn, receipt: Receipt) -> ChatAnswer:
        """A turn as the answer to its request."""
        output = turn.output
        called = output.finish_reason == "stop" and turn.reply.get("tool_calls")
        return ChatAnswer(
            answer_id=receipt.answer_id,
            created=receipt.created,
            model=request.model,
            message=dict(turn.reply),
            finish_reason="tool_calls" if called else output.finish_reason,
            prompt_tokens=turn.end - output.size,
            completion_tokens=output.size,
            cached_tokens=receipt.cached_tokens,
            logprobs=self._token_logprobs(output) if request.logprobs else None,
            stop_sequence=receipt.stop_sequence,
        )

    def _enough(self, request: ChatRequest, prompt: Prompt) -> Enough:
        """Finds the token that completes the reply's first JSON object, for requests that stop there."""
        if not request.stops_at_object:
            return lambda ids: None

        def complete(ids: np.ndarray) -> bool:
            text, tools = self._tito.encoder.decode(ids), request.callable_tools
            reply = self._tito.parser.parse(text, tools=tools, in_reasoning=prompt.suffix.opens_reasoning)
            return first_object(reply.content) is not None

        return _first_that(self._tito, complete)

    def _read(self, generation: Generation) -> tuple[int | None, str]:
        """(the stop token if it was sampled, the text without what stopped it)."""
        matched = generation.finish.get("matched") if generation.finish_reason == "stop" else None
        ids = generation.ids
        if isinstance(matched, str):
            text = self._tito.encoder.decode(ids)
            return None, text[: text.rfind(matched)] if matched in text else text
        sampled = len(ids) > 0 and generation.finish_reason == "stop" and ids[-1] == matched
        text = self._tito.encoder.decode(ids[:-1] if sampled else ids)
        return int(ids[-1]) if sampled else None, text

    def _token_logprobs(self, output: Output) -> list[tuple[str, float]]:
        texts = [self._tito.encoder.decode([token]) for token in output.ids.tolist()]
        return list(zip(texts, map(float, output.logprobs), strict=True))


def _output(sampling: Sampling, generation: Generation, *, stop: int | None, started: float) -> Output:
    params = dict(sampling.params)
    limit = params.pop("max_new_tokens")
    return Output(
        token_bytes=pack_tokens(generation.ids, generation.logprobs),
        span_bytes=pack_spans(generation.spans),
        finish_reason=sys.intern(generation.finish_reason),
        stop=stop,
        started=started,
        finished=time.time(),
        params=params,
        limit=limit,
        experts=np.concatenate(generation.experts) if generation.experts else None,
    )


def _counts_of(prompt: Prompt, generation: Generation) -> dict[str, int]:
    return {
        "turns": 1,
        "prompt_tokens": prompt.tokens,
        "completion_tokens": len(generation.ids),
        "sampling_overridden": prompt.sampling.overridden,
        "engine_retries": generation.retries,
        "system_joined": prompt.suffix.joined,
        "system_placed": prompt.suffix.placed,
        "calls_rewritten": prompt.place.rewritten,
    }


def _first_that(tito: Tito, complete: Callable[[np.ndarray], bool]) -> Enough:
    """How many of growing ids are `complete`, which more of them stay, at a closing brace."""
    seen = 0

    def enough(ids: np.ndarray) -> int | None:
        nonlocal seen
        start, seen = seen, len(ids)
        if "}" not in tito.encoder.decode(ids[start:]) or not complete(ids):
            return None
        return bisect_left(range(len(ids)), True, lo=start, key=lambda size: complete(ids[:size]))

    return enough


def _watcher(tito: Tito, stream: ReplyStream, on_delta: OnDelta, stops: list[str], enough: Enough) -> OnTokens:
    """Turns ids so far into what can be shown of them: no stop token, nothing that may become a stop string.

    Engines stop at control tokens that the model folder does not name, so that any of them waits for the next token.
    """
    written = tito.encoder.stream()
    last = tito.stop_ids.union(tito.encoder.control.values())

    async def watch(ids: np.ndarray) -> int | None:
        kept = enough(ids)
        ids = ids[:kept]
        text = written.feed(ids[:-1] if ids[-1] in last else ids)
        for stop in stops:
            text = text.partition(stop)[0]
        new = stream.feed(hold_back(text, *stops))
        if delta := Delta(new.reasoning, new.content):
            await on_delta(delta)
        return kept

    return watch
