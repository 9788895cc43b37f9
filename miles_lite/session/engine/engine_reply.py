"""What an engine generated, read: as the turn to commit, and as the answer to its request.

Invariant: reads only; a turn gives the same answer whenever it is asked.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from miles_lite.session.dialects.request import ChatAnswer, ChatRequest, message_of
from miles_lite.session.engine.engine_client import Generation
from miles_lite.session.engine.prompt import Prompt
from miles_lite.session.engine.sampling import Sampling
from miles_lite.session.history.turn_record import Output, Turn, pack_spans, pack_tokens
from miles_lite.session.journal.row import Entry, Receipt
from miles_lite.session.shared_request import Call
from miles_lite.tito import Tito


class Reader:
    """Reads in one model's text."""

    def __init__(self, tito: Tito) -> None:
        self._tito = tito

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

    def answer(self, request: ChatRequest, turn: Turn, receipt: Receipt) -> ChatAnswer:
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
        prefill=generation.prefill,
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
