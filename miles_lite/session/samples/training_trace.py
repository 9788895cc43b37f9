"""A session's turns as trainers of OpenEnv's harness contract take them (openenv/core/harness/training.py, version 1).

Invariant: reads only. Each turn that collecting keeps is there once, with the very ids that the engine was sent and
sampled; a mask is 1 where `collect` trains, and a reward is nobody's here.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from miles_lite.process.json_types import JsonObject
from miles_lite.session.engine.sampling import inexact
from miles_lite.session.history.tree import Tree
from miles_lite.session.history.turn_record import Turn, sampling


def encode_training_trace(tree: Tree, kept: Sequence[Turn], *, mask_inexact: bool) -> bytes:
    """JSON that `TrainingTrace.model_validate_json` takes. `kept`: the leaves whose paths are trained."""
    turns = {turn.number: turn for leaf in kept for turn in leaf.path()}
    told = [_turn(tree, turns[number], mask_inexact=mask_inexact) for number in sorted(turns)]
    return orjson.dumps({"schema_version": 1, "turns": told})


def _turn(tree: Tree, turn: Turn, *, mask_inexact: bool) -> JsonObject:
    output = turn.output
    prompt = tree.context(turn)[: turn.end - output.size]
    trained = output.temperature > 0 and not (mask_inexact and inexact(output.params))
    tools = turn.caller.tools
    return {
        "node_id": str(turn.number),
        "prompt_token_ids": prompt.tolist(),
        "completion_token_ids": output.ids.tolist(),
        "per_token_logps": output.logprobs.tolist(),
        "loss_mask": [0] * len(prompt) + [int(trained)] * output.size,
        "request": {"messages": tree.history(turn)[:-1], "tools": list(tools) if tools else None},
        "response": {"choices": [{"message": turn.reply, "finish_reason": output.finish_reason}]},
        "metadata": {
            "index": turn.number,
            "parent": None if turn.parent is None else str(turn.parent.number),
            "sampling_params": sampling(output),
            "weight_versions": output.spans,
        },
    }
