"""What training made of tokens stands at those very tokens, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest

from miles_lite.errors import UserError
from miles_lite.traces import atraj
from miles_lite.traces.token_values import TokenValues, put


def trajectory(*turns: list[int]) -> atraj.Trajectory:
    told = [
        {
            "turn": turn,
            "parent": turn - 1 if turn else None,
            "messages": [],
            "reply": {"content": "said"},
            "drop": 0,
            "prompt_ids": [1],
            "output_ids": ids,
            "output_logprobs": [-0.5] * len(ids),
            "temperature": 1.0,
            "finish_reason": "stop",
            "weight_versions": [[0, 0, len(ids)]],
        }
        for turn, ids in enumerate(turns)
    ]
    return atraj.build({"model": {}, "leaves": [len(turns) - 1], "turns": told})


def values(turn: int, places: list[int], ids: list[int], logprobs: list[float], advantage: float) -> TokenValues:
    return TokenValues(
        rollout=3,
        turn=turn,
        places=np.array(places, np.int32),
        ids=np.array(ids, np.int32),
        logprobs=np.array(logprobs, np.float32),
        advantages=np.full(len(ids), advantage, np.float32),
    )


def columns(told: atraj.Trajectory) -> list[tuple[object, object]]:
    sampled = [step.data for step in told.steps if step.sampled]
    return [(step.get("trainer_logprobs"), step.get("advantages")) for step in sampled]


def test_values_stand_at_their_tokens_in_the_fewest_digits() -> None:
    made = put(trajectory([7, 8, 9], [5]), [values(0, [0, 2], [7, 9], [-0.1, math.nan], 0.7)])
    assert columns(made) == [([-0.1, None, None], [0.7, None, 0.7]), (None, None)]
    again = atraj.parse(orjson.loads(atraj.dump(made)))
    assert atraj.dump(again) == atraj.dump(made)


def test_a_turn_that_two_sequences_train_has_the_tokens_of_both() -> None:
    made = put(trajectory([7, 8]), [values(0, [0], [7], [-1.0], 1.0), values(0, [1], [8], [-2.0], 1.5)])
    assert columns(made) == [([-1.0, -2.0], [1.0, 1.5])]


@pytest.mark.parametrize("strange", [values(4, [0], [7], [-1.0], 1.0), values(0, [0, 9], [6, 9], [-1.0, -1.0], 1.0)])
def test_what_fits_nowhere_is_left_out(strange: TokenValues) -> None:
    (step,) = columns(put(trajectory([7, 8]), [strange]))
    assert step in ((None, None), ([None, None], [None, None]))


def test_a_file_with_fewer_values_than_tokens_is_refused() -> None:
    made = put(trajectory([7, 8]), [values(0, [0], [7], [-1.0], 1.0)])
    made.data["steps"][-1]["advantages"] = [1.0]
    with pytest.raises(UserError, match="1 advantages but not as many output_ids"):
        atraj.parse(made.data)
