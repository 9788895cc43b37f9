"""Trees built by hand, and by hypothesis as a harness would build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from miles_lite.session.history.agent_identity import Caller, caller_of
from miles_lite.session.history.match import MATCHERS
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Output, Turn, pack_spans, pack_tokens

NOBODY = caller_of(None, None)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def output(
    size: int = 3,
    *,
    at: float = 0.0,
    finish: str = "stop",
    temperature: float = 1.0,
    version: int = 1,
    first: int = 100,
) -> Output:
    return Output(
        token_bytes=pack_tokens(range(first, first + size), [-0.25] * size),
        span_bytes=pack_spans([(version, 0, size)]),
        finish_reason=finish,
        stop=first + size - 1 if finish == "stop" else None,
        started=at,
        finished=at + 1.0,
        params={"temperature": temperature},
    )


def grow(
    tree: Tree,
    messages: Sequence[Mapping[str, Any]],
    reply: str | dict[str, Any],
    *,
    prompt: int = 2,
    drop: int = 0,
    caller: Caller = NOBODY,
    retries: int | None = None,
    **out: Any,
) -> Turn:
    """Attach `messages` and commit a turn that adds `prompt` ids and `reply`."""
    place = tree.attach(messages, caller)
    return tree.commit(
        place,
        messages[place.matched :],
        reply=said(reply) if isinstance(reply, str) else reply,
        prompt_ids=np.arange(prompt, dtype=np.int32),
        drop=drop,
        output=output(**out),
        retries=retries,
    )


def new_tree() -> Tree:
    return Tree(MATCHERS["replay"])


def fingerprint(tree: Tree) -> str:
    """A digest of everything a tree holds: equal fingerprints are bit-identical trees."""
    digest = blake2b()
    for turn in tree.turns:
        output = turn.output
        digest.update(
            repr((turn.number, turn.parent and turn.parent.number, turn.caller, turn.root, turn.retries)).encode()
        )
        digest.update(repr((turn.messages, turn.reply, turn.start, turn.drop)).encode())
        digest.update(repr((output.spans, output.params, output.limit, output.finish_reason, output.stop)).encode())
        digest.update(repr((output.started, output.finished, [leaf.number for leaf in tree.leaves()])).encode())
        for array in (turn.prompt_ids, output.ids, output.logprobs):
            digest.update(array.dtype.str.encode() + array.tobytes())
    return digest.hexdigest()
