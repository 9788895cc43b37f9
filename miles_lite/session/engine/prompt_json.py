"""Prompts as engines read them: ids in JSON, of which a turn writes only what it adds.

Invariant: what is written for a place in a tree is the JSON of the ids of its context and suffix. The text of each
session's latest prompt is kept, all of them within a bound; without it a prompt is written out from its first id.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import orjson

from miles_lite.session.history.turn_record import Turn, backwards

_LIMIT = 4 * 2**20


class Prompts:
    """Texts like `1,2,3`, of which those asked for last are kept, in `limit` bytes altogether."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    def write(self, session_id: str, turn: Turn | None, suffix: np.ndarray, *, drop: int = 0) -> bytes:
        """The ids up to and including the turn's output, without the last `drop`, then `suffix` (int32)."""
        number, text = self._kept.get(session_id, (-1, b""))
        parts = [suffix]
        for step, sampled in backwards(turn, drop):
            parts.append(sampled)
            if step.number == number:
                return joined(text, numbers(*reversed(parts)))
            parts.append(step.prompt_ids)
        return numbers(*reversed(parts))

    def keep(self, session_id: str, turn: Turn, text: bytes) -> None:
        """Remember what was written for the prompt of `turn`."""
        self.forget(session_id)
        self._kept[session_id] = turn.number, text
        self._bytes += len(text)
        while self._bytes > self._limit:
            self.forget(next(iter(self._kept)))

    def forget(self, session_id: str) -> None:
        _, text = self._kept.pop(session_id, (-1, b""))
        self._bytes -= len(text)


def joined(*texts: bytes) -> bytes:
    """Texts of ids as one; any may be empty."""
    return b",".join(filter(None, texts))


def numbers(*parts: np.ndarray) -> bytes:
    """int32 ids, one part after the other, as `1,2,3`."""
    return orjson.dumps(np.concatenate(parts), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
