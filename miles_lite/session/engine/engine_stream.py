"""A reply while it grows: what can be shown of it, and whether it suffices.

Invariant: what is told of a reply while it grows is the beginning of its answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from miles_lite.session.dialects.request import ChatRequest, Delta
from miles_lite.session.engine.engine_client import OnTokens
from miles_lite.session.engine.prompt import Prompt
from miles_lite.session.shared_request import OnDelta
from miles_lite.tito import Tito
from miles_lite.tito.json_object import first_object
from miles_lite.tito.reasoning import hold_back

Enough = Callable[[np.ndarray], int | None]


def watcher(tito: Tito, request: ChatRequest, prompt: Prompt, on_delta: OnDelta) -> OnTokens:
    """Takes ids so far, tells what can be shown of them, and whether they suffice.

    Shown is no stop token, and nothing that may become a stop string. Engines stop at control tokens that the model
    folder does not name, so that any of them waits for the next token.
    """
    stream = tito.stream(tools=request.callable_tools, in_reasoning=prompt.suffix.opens_reasoning)
    stops, enough = prompt.sampling.stop, _enough(tito, request, prompt)
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


def _enough(tito: Tito, request: ChatRequest, prompt: Prompt) -> Enough:
    """Finds the token that completes the reply's first JSON object, for requests that stop there."""
    if not request.stops_at_object:
        return lambda ids: None

    def complete(ids: np.ndarray) -> bool:
        text, tools = tito.encoder.decode(ids), request.callable_tools
        reply = tito.parser.parse(text, tools=tools, in_reasoning=prompt.suffix.opens_reasoning)
        return first_object(reply.content) is not None

    return _first_that(tito, complete)


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
