"""A trajectory's turns, as a session takes them that is to go on from there (POST /sessions).

Invariant: ids, logprobs and messages are those of the file; only turns are numbered anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.errors import UserError
from miles_lite.process.json_types import JsonObject
from miles_lite.traces import atraj
from miles_lite.traces.atraj import Step, Trajectory


def turns_to(trajectory: Trajectory, turn: int) -> list[JsonObject]:
    """The turns of the conversation that leads to a turn, that one included, as `atraj.build` takes them. Raises
    UserError for a turn that is not there."""
    parents = {step.turn: step.data.get("parent") for step in trajectory.steps if step.sampled}
    if turn not in parents:
        there = f"there are {min(parents)} to {max(parents)}" if parents else "there are none: nothing was sampled"
        raise UserError(f"turn {turn} was not recorded; {there}")
    path: list[int] = []
    at: int | None = turn
    while at is not None:
        path.append(at)
        at = parents[at]
    path.reverse()
    by_turn = {number: [step for step in trajectory.steps if step.turn == number] for number in path}
    return [_turn(by_turn[number], place) for place, number in enumerate(path)]


def messages_of(turns: Sequence[JsonObject], *, answered: bool) -> list[JsonObject]:
    """What they said, in order; not `answered`: without the last reply."""
    said = [message for turn in turns for message in (*turn["messages"], turn["reply"])]
    return said if answered else said[:-1]


def _turn(steps: Sequence[Step], number: int) -> JsonObject:
    told, sampled = [step for step in steps if not step.sampled], next(step for step in steps if step.sampled)
    *messages, reply = atraj.messages([*told, sampled])
    data = sampled.data
    return {
        "turn": number,
        "parent": number - 1 if number else None,
        "messages": [message for message in messages if message != atraj.NOTHING_SAID],
        "reply": reply,
        "drop": told[0].drop if told else 0,
        "prompt_ids": [token for step in told for token in step.ids],
        "output_ids": sampled.ids,
        "output_logprobs": sampled.logprobs,
        "temperature": data.get("temperature", 1.0),
        "finish_reason": data.get("finish_reason", "stop"),
        "weight_versions": data.get("weight_versions", []),
    }
