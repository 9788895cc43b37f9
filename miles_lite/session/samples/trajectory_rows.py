"""A session's turns with every id, as the trajectory file (`miles_lite.traces.atraj`) takes them.

Invariant: reads only; ids and logprobs are those of the tree, and `leaves` are those that collecting keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from miles_lite.process.json_types import JsonObject
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn


def encode_turns(tree: Tree, *, kept: Sequence[Turn], model: dict[str, str]) -> bytes:
    """JSON `{"model": ..., "leaves": [...], "turns": [...]}`, turns in the order in which they were committed.

    `kept` are the leaves that collecting keeps.
    """
    body = {"model": model, "leaves": [leaf.number for leaf in kept], "turns": [_turn(turn) for turn in tree.turns]}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _turn(turn: Turn) -> JsonObject:
    output = turn.output
    return {
        "turn": turn.number,
        "parent": turn.parent.number if turn.parent else None,
        "messages": turn.messages,
        "reply": turn.reply,
        "drop": turn.drop,
        "prompt_ids": np.ascontiguousarray(turn.prompt_ids),
        "output_ids": np.ascontiguousarray(output.ids),
        "output_logprobs": np.ascontiguousarray(output.logprobs),
        "temperature": output.temperature,
        "finish_reason": output.finish_reason,
        "weight_versions": output.spans,
    }
