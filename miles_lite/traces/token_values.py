"""What training made of the tokens that a rollout sampled, and its place in the rollout's trajectory file.

Invariant: a value stands at the very token that it was computed of, or nowhere: what does not fit is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import orjson

from miles_lite.process.json_types import JsonObject
from miles_lite.traces.atraj import ADVANTAGES, TRAINER_LOGPROBS, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenValues:
    """Of the N tokens of one turn that one training sequence trains.

    rollout     its number in the run; turn: that of the turn in the rollout's session
    places      int32 [N], which of the tokens that the turn sampled each is, at least 0
    ids         int32 [N]
    logprobs    float32 [N], the trainer's before the batch's first update, or where nobody asked for those before the
                update that trained the token
    advantages  float32 [N], what the loss was given
    """

    rollout: int
    turn: int
    places: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    advantages: np.ndarray


def put(trajectory: Trajectory, values: Iterable[TokenValues]) -> Trajectory:
    """Add `trainer_logprobs` and `advantages` to the sampled steps of a trajectory, which it changes; null where no
    sequence trains the token."""
    steps = {step.turn: step.data for step in trajectory.steps if step.sampled}
    for each in values:
        if each.turn in steps:
            _put(steps[each.turn], each)
    return trajectory


def _put(step: JsonObject, values: TokenValues) -> None:
    ids = np.asarray(step["output_ids"])
    within = np.flatnonzero(values.places < len(ids))
    fits = within[ids[values.places[within]] == values.ids[within]]
    for name, array in ((TRAINER_LOGPROBS, values.logprobs), (ADVANTAGES, values.advantages)):
        column = step.setdefault(name, [None] * len(ids))
        for place, value in zip(values.places[fits].tolist(), _numbers(array[fits]), strict=True):
            column[place] = value


def _numbers(array: np.ndarray) -> list[float | None]:
    """In the fewest digits that are this float32; NaN is None."""
    numbers: list[float | None] = orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers
